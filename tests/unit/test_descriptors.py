"""How full the table of open files may be for whom."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from distsync_node import descriptors


class Accepted:
    """A transport, and its socket, whose file has that number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def get_extra_info(self, _name: str) -> Accepted:
        return self

    def fileno(self) -> int:
        return self._number


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was set last is what is in force."""
    in_force = [(1_024, 4_096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: in_force[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: in_force.append(pair))
    return in_force


@pytest.mark.parametrize(
    ("number", "client", "probe", "call"),
    [
        (511, True, True, True),
        (512, False, True, True),
        (767, False, True, True),
        (768, False, False, True),
        (895, False, False, True),
        (896, False, False, False),
    ],
)
def test_clients_leave_room_for_calls_and_calls_for_all_else(
    limits: list[tuple[int, int]], number: int, client: bool, probe: bool, call: bool
) -> None:
    transport: Any = Accepted(number)
    assert descriptors.has_room_for_client(transport) == client
    assert descriptors.has_room_for_probe(transport) == probe
    assert descriptors.has_room_for_call(transport) == call
    limits.append((resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert descriptors.has_room_for_client(transport)
    assert descriptors.has_room_for_call(transport)


def test_the_limit_is_raised_as_far_as_it_may(limits: list[tuple[int, int]]) -> None:
    descriptors.raise_limit()
    assert limits[-1] == (4_096, 4_096)


def test_a_limit_that_cannot_be_raised_stays(
    limits: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_limit()
    assert limits == [(1_024, 4_096)]
