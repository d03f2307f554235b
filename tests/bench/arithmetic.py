"""The arithmetic of the benchmarks: percentiles, the void rule, ratios, gaps without grants.

Pure functions, tested by tests/unit/bench. What they are asked with is measured elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

MAX_LOAD_CPU_SHARE = 0.8
"""A run in which the load client used more of its core than this measured the client: void."""

Bound = Literal["at_least", "at_most"]


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """A figure held against its goal. `ratio` is None when the run gave no valid figure.

    `goal` of None is for information: there is nothing to reach.
    """

    name: str
    ratio: float | None
    goal: float | None
    bound: Bound
    met: bool | None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank).

    Raises: ValueError for no values or a share outside (0, 1].
    """
    if not values:
        raise ValueError("no values")
    if not 0 < share <= 1:
        raise ValueError(f"share {share} is not in (0, 1]")
    # Rounding first: 0.07 * 100 is 7.000000000000001 and must be rank 7, not 8.
    rank = math.ceil(round(share * len(values), 9))
    return sorted(values)[max(rank, 1) - 1]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. Raises: ValueError for no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def cpu_share(cpu_s: float, wall_s: float) -> float:
    """CPU seconds used for each second that passed. Raises: ValueError for an empty window."""
    if wall_s <= 0:
        raise ValueError("the window has no length")
    return cpu_s / wall_s


def is_void(load_cpu_share: float) -> bool:
    """Whether the load client itself was the limit, so that the figures say nothing."""
    return load_cpu_share > MAX_LOAD_CPU_SHARE


def cpu_us_per_pair(server_cpu_s: Iterable[float], pairs: int) -> float | None:
    """Microseconds of CPU of all servers together for one pair; None when there was no pair."""
    return sum(server_cpu_s) / pairs * 1e6 if pairs else None


def hold_against(
    name: str, ours: float | None, theirs: float | None, *, goal: float | None, bound: Bound
) -> Ratio:
    """`ours / theirs` beside its goal; no ratio without one of the two, or with theirs zero."""
    if ours is None or theirs is None or theirs == 0:
        return Ratio(name=name, ratio=None, goal=goal, bound=bound, met=None)
    return judge(name, ours / theirs, goal=goal, bound=bound)


def judge(name: str, value: float | None, *, goal: float | None, bound: Bound) -> Ratio:
    """A figure beside its goal. No figure, or no goal: neither met nor missed."""
    met = None
    if value is not None and goal is not None:
        met = value >= goal if bound == "at_least" else value <= goal
    return Ratio(name=name, ratio=value, goal=goal, bound=bound, met=met)


def longest_silence(grants: Sequence[float], since: float) -> float | None:
    """The longest time between two neighbouring grants of which the later came after `since`.

    A killed leader's last answers still arrive from socket buffers for a moment; the gap proper
    follows them, so the longest one is taken, not the first. None when nothing was granted before
    `since` or nothing after it.
    """
    ordered = sorted(grants)
    gaps = [later - earlier for earlier, later in itertools.pairwise(ordered) if later > since]
    if not gaps or ordered[0] > since:
        return None
    return max(gaps)
