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

MAX_ERROR_SHARE = 0.01
"""A round of which more than this failed does not count."""

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


def middle(figures: Iterable[float | None]) -> float | None:
    """The median of those that are known; None when none is."""
    known = [figure for figure in figures if figure is not None]
    return median(known) if known else None


def is_counted(*, void: bool, done: int, failed: int) -> bool:
    """Whether a round says something of the servers."""
    return not void and done > 0 and failed <= MAX_ERROR_SHARE * done


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


def batch_goal(best: float | None, raw_limit: float | None) -> float | None:
    """What batches must reach: five times the best of all, or 60 % of the raw limit where lower.

    None as long as one of them is unknown: the lower one is unknown then.
    """
    if best is None or raw_limit is None:
        return None
    return min(5.0 * best, 0.6 * raw_limit)


def served_again_s(rounds: Sequence[Sequence[tuple[float, float]]], since: float) -> float | None:
    """After how long all clients were served again.

    `rounds` has, for each client, when its rounds began and ended. The time ends when the last of
    the clients ends its first round that began after `since`; None while one has none.
    """
    ends = [
        min((ended for began, ended in of_one if began > since), default=None) for of_one in rounds
    ]
    if not ends or None in ends:
        return None
    return max(end for end in ends if end is not None) - since


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
