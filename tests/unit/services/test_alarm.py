"""An alarm rings at the next deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from distsync_node.services.alarm import Alarm


class Timers:
    """A loop whose timers go off when it is told to: each is its delay and what it calls."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = (delay, callback)
        self.set.append(timer)
        return Timer(self, timer)

    @property
    def delays(self) -> list[float]:
        return [delay for delay, _ in self.set]

    def go_off(self) -> None:
        _, callback = self.set.pop(0)
        callback()


class Timer:
    def __init__(self, timers: Timers, timer: tuple[float, Callable[[], None]]) -> None:
        self._timers = timers
        self._timer = timer

    def cancel(self) -> None:
        if self._timer in self._timers.set:
            self._timers.set.remove(self._timer)


class Core:
    """It is 1,000 ms by its clock, and its next deadline is at `next_ms`."""

    def __init__(self, *, least_ms: int = 0) -> None:
        self.next_ms: int | None = None
        self.rang = 0
        self.alarm = Alarm(lambda: 1_000, lambda: self.next_ms, self._ring, least_ms=least_ms)

    def _ring(self) -> None:
        self.rang += 1


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Timers:
    timers = Timers()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: timers)
    return timers


def test_it_rings_once_when_the_deadline_has_come(timers: Timers) -> None:
    core = Core()
    core.alarm.look()
    assert not timers.set
    core.next_ms = 1_250
    core.alarm.look()
    core.alarm.look()
    assert timers.delays == [0.25]
    timers.go_off()
    assert core.rang == 1
    assert not timers.set


def test_only_a_sooner_deadline_takes_the_place_of_another(timers: Timers) -> None:
    core = Core()
    core.next_ms = 1_250
    core.alarm.look()
    core.next_ms = 2_000
    core.alarm.look()
    assert timers.delays == [0.25]
    core.next_ms = 1_100
    core.alarm.look()
    assert timers.delays == [0.1]


@pytest.mark.parametrize("least_ms", [0, 1])
def test_a_deadline_that_has_passed_rings_as_soon_as_may_be(timers: Timers, least_ms: int) -> None:
    core = Core(least_ms=least_ms)
    core.next_ms = 400
    core.alarm.look()
    assert timers.delays == [least_ms / 1_000]


def test_all_that_happens_in_a_moment_is_looked_at_once(timers: Timers) -> None:
    core = Core()
    core.alarm.look_within(0.002)
    core.next_ms = 1_100
    core.alarm.look_within(0.002)
    assert timers.delays == [0.002]
    timers.go_off()
    assert timers.delays == [0.1]


def test_it_never_rings_after_its_end(timers: Timers) -> None:
    core = Core()
    core.next_ms = 1_100
    core.alarm.look()
    core.alarm.look_within(0.002)
    core.alarm.end()
    core.alarm.look()
    assert not timers.set
