"""Leader time never goes back, ends nothing early, and counts the time between leaders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distsync_node.replica.clock import LeaderClock


def test_reading_is_the_last_stamp_plus_local_time() -> None:
    clock = LeaderClock(1_000, 50)
    clock.applied(2_000, 70, leading=False)
    assert clock.read(70) == 2_000
    assert clock.read(170) == 2_100
    assert clock.local_ms(2_100) == 170


def test_a_no_op_that_repeats_a_stamp_does_not_lose_the_time_between_leaders() -> None:
    clock = LeaderClock(0, 0)
    clock.applied(1_000, 100, leading=False)
    for failover in range(1, 11):
        clock.applied(1_000, 100 + failover * 800, leading=False)
    assert clock.read(100 + 8_000) == 9_000


def test_a_new_leader_keeps_the_time_that_passed_while_it_caught_up() -> None:
    clock = LeaderClock(0, 0)
    clock.applied(1_000, 100, leading=False)
    # An entry of the old leader, stamped 1,050, is applied 900 ms later by the new one.
    clock.applied(1_050, 1_000, leading=True)
    assert clock.read(1_000) == 1_900


def test_a_leader_that_was_ahead_of_its_stamps_does_not_go_back_as_a_follower() -> None:
    clock = LeaderClock(0, 0)
    assert clock.stamp(5_000) == 5_000
    clock.applied(4_000, 5_100, leading=False)
    assert clock.read(5_100) == 5_100


def test_a_follower_with_a_fast_clock_is_set_right_by_each_stamp() -> None:
    clock = LeaderClock(0, 0)
    for second in range(1, 3_600):
        clock.applied(second * 1_000, second * 1_010, leading=False)
    assert clock.read(3_599 * 1_010) == 3_599_000


@given(st.lists(st.tuples(st.integers(0, 2_000), st.sampled_from(["follow", "lead", "stamp"]))))
def test_reading_and_stamps_never_go_back(moves: list[tuple[int, str]]) -> None:
    clock = LeaderClock(0, 0)
    now_ms, log_stamp, last_stamp = 0, 0, 0
    for step_ms, move in moves:
        now_ms += step_ms
        if move == "stamp":
            log_stamp = clock.stamp(now_ms)
            assert log_stamp >= last_stamp
            last_stamp = log_stamp
        else:
            log_stamp += step_ms // 2
            clock.applied(log_stamp, now_ms, leading=move == "lead")
        assert clock.read(now_ms) >= clock.floor_ms
        assert clock.read(now_ms + 1) >= clock.read(now_ms)
