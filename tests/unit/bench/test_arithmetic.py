"""The arithmetic of the benchmarks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.arithmetic import (
    batch_goal,
    cpu_share,
    cpu_us_per_pair,
    hold_against,
    is_void,
    judge,
    longest_silence,
    median,
    middle,
    percentile,
    served_again_s,
)

figures = st.lists(st.integers(0, 10**9), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.01, 1), (1.0, 100), (0.07, 7), (0.005, 1)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


@given(figures, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_percentile_is_the_least_value_that_covers_the_share(
    values: list[int], share: float
) -> None:
    found = percentile(values, share)
    covered = sum(value <= found for value in values)
    below = sum(value < found for value in values)
    assert found in values
    assert covered >= share * len(values) - 1e-6
    assert below < share * len(values)


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_percentile_refuses_a_share_outside_its_range(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        percentile([1], share)


def test_nothing_measured_has_no_percentile_and_no_median() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)
    with pytest.raises(ValueError, match="no values"):
        median([])


def test_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert median([9, 1, 5, 3]) == 4
    assert median([9, 1, 5]) == 5


def test_a_load_above_eighty_percent_of_its_core_is_void_and_at_it_is_not() -> None:
    assert not is_void(cpu_share(cpu_s=2.4, wall_s=3.0))
    assert is_void(cpu_share(cpu_s=2.401, wall_s=3.0))


def test_an_empty_window_has_no_cpu_share() -> None:
    with pytest.raises(ValueError, match="window"):
        cpu_share(cpu_s=0.1, wall_s=0)


def test_cpu_per_pair_adds_all_servers() -> None:
    assert cpu_us_per_pair([1.0, 0.5, 0.5], 4000) == pytest.approx(500)
    assert cpu_us_per_pair([1.0], 0) is None


def test_a_ratio_meets_its_goal_on_the_right_side_of_it() -> None:
    assert hold_against("x", 200, 100, goal=2, bound="at_least").met is True
    assert hold_against("x", 199, 100, goal=2, bound="at_least").met is False
    assert hold_against("x", 70, 100, goal=0.7, bound="at_most").met is True
    assert hold_against("x", 71, 100, goal=0.7, bound="at_most").met is False


@pytest.mark.parametrize(("ours", "theirs"), [(None, 1.0), (1.0, None), (1.0, 0.0)])
def test_a_missing_figure_is_neither_met_nor_missed(
    ours: float | None, theirs: float | None
) -> None:
    ratio = hold_against("x", ours, theirs, goal=2, bound="at_least")
    assert ratio.ratio is None
    assert ratio.met is None


def test_without_a_goal_there_is_nothing_to_meet() -> None:
    assert judge("x", 3.0, goal=None, bound="at_most").met is None


def test_silence_is_the_longest_gap_that_ends_after_the_kill() -> None:
    # The gap of 5 s before the kill is not the kill's; two answers still came from the buffers.
    grants = [0.0, 5.0, 5.1, 5.2, 5.21, 5.9, 5.91]
    assert longest_silence(grants, since=5.15) == pytest.approx(0.69)


def test_silence_does_not_depend_on_the_order_of_the_grants() -> None:
    assert longest_silence([3.0, 1.0, 2.5], since=2.0) == pytest.approx(1.5)


@pytest.mark.parametrize("grants", [[], [1.0], [1.0, 1.5], [2.5, 2.6]])
def test_without_a_grant_on_each_side_of_the_kill_there_is_no_silence_to_tell(
    grants: list[float],
) -> None:
    assert longest_silence(grants, since=2.0) is None


def test_the_middle_is_the_median_of_what_is_known() -> None:
    assert middle([3.0, None, 1.0, 2.0]) == 2.0
    assert middle([None]) is None
    assert middle([]) is None


def test_batches_are_to_beat_five_times_the_best_unless_redis_does_not_give_that() -> None:
    assert batch_goal(1_000, 100_000) == 5_000
    assert batch_goal(5_000, 10_000) == 6_000
    assert batch_goal(None, 10_000) is None
    assert batch_goal(5_000, None) is None


def test_all_are_served_again_when_the_last_one_is() -> None:
    first = [(9.0, 9.5), (9.9, 10.2), (10.3, 10.4), (10.5, 10.6)]
    last = [(9.8, 9.9), (10.1, 10.7), (10.8, 10.9)]
    assert served_again_s([first, last], 10.0) == pytest.approx(0.7)


def test_a_round_from_before_the_kill_is_no_sign_of_service() -> None:
    assert served_again_s([[(9.9, 10.2)]], 10.0) is None
    assert served_again_s([[(10.1, 10.2)], []], 10.0) is None
    assert served_again_s([], 10.0) is None
