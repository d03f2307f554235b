"""What the kills of the leader amount to."""

from __future__ import annotations

from bench.failover import Failover, ratios


def killed(times_s: list[float | None]) -> Failover:
    return Failover(
        variant="distsync",
        timing="default",
        clients=16,
        times_s=times_s,
        median_s=0.5,
        longest_s=0.9,
        errors=[],
    )


def test_the_median_is_held_against_one_second() -> None:
    median, longest = ratios([killed([0.4, 0.5, 0.9])])
    assert (median.ratio, median.goal, median.met) == (0.5, 1.0, True)
    assert (longest.ratio, longest.met) == (0.9, None)


def test_a_kill_after_which_nothing_was_granted_leaves_no_figure() -> None:
    median, _ = ratios([killed([0.4, None, 0.5])])
    assert median.ratio is None
    assert median.met is None
