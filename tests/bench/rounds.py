"""What the benchmarks of throughput have in common: systems that take turns, points, figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import msgspec

from bench.arithmetic import Ratio, judge

T = TypeVar("T")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how often."""

    rounds: int = 3
    duration_s: float = 2.5
    warmup_s: float = 0.7


class Point(Protocol):
    """A system, a scenario and a number of clients, over all rounds."""

    variant: str
    scenario: str
    clients: int


def in_turn(systems: Sequence[T], number: int) -> list[T]:
    """Return them in the order of a round: another one is the first each time."""
    turn = number % len(systems)
    return [*systems[turn:], *systems[:turn]]


def figure(
    points: Iterable[Point], name: str, variant: str, scenario: str, clients: int
) -> float | None:
    """Return a figure of a point, None if it has none."""
    for point in points:
        if (point.variant, point.scenario, point.clients) == (variant, scenario, clients):
            value = getattr(point, name)
            return None if value is None else float(value)
    return None


def judge_load(shares: Iterable[float]) -> Ratio:
    """Return the largest share of its core that the load client used, beside what it may use."""
    what = "share of its core the load client used, at most"
    return judge(what, max(shares, default=None), goal=0.8, bound="at_most")
