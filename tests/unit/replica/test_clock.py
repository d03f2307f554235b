"""Leader time never goes back, ends nothing early, and counts the time between leaders."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distsync_node.replica.clock import LeaderClock


def test_reading_is_the_last_stamp_plus_the_time_since_it_arrived() -> None:
    clock = LeaderClock(1_000, 50)
    clock.arrived(2, 60)
    clock.applied(2, 2_000)
    assert clock.read(70) == 2_010
    assert clock.read(170) == 2_110
    assert clock.local_ms(2_100) == 160


def test_a_stamp_that_comes_again_counts_from_its_last_arrival() -> None:
    """A leader that was away may hand out the very stamp it found, long after it was first made."""
    clock = LeaderClock(0, 0)
    clock.arrived(2, 100)
    clock.applied(2, 1_000)
    clock.arrived(3, 4_000)
    clock.applied(3, 1_000)
    assert clock.read(4_100) == 1_100


def test_a_new_leader_keeps_the_time_that_passed_while_it_caught_up() -> None:
    clock = LeaderClock(0, 0)
    # An entry of the old leader, stamped 1,050, is applied 900 ms later by the new one.
    clock.arrived(2, 100)
    clock.applied(2, 1_050)
    assert clock.read(1_000) == 1_950


def test_leaders_that_each_live_for_one_stamp_keep_time_going() -> None:
    """Each leader dies before its only entry is known to be committed; elections take 800 ms."""
    stamp_ms = 1_000
    clock = LeaderClock(stamp_ms, 0)
    for leader in range(1, 11):
        now_ms = leader * 800
        clock.applied(leader, stamp_ms)
        stamp_ms = clock.read(now_ms)  # the next leader, whose log is the same, stamps this
        clock.arrived(leader + 1, now_ms)
    assert stamp_ms == 9_000


def test_a_successor_goes_on_from_a_leader_that_was_behind() -> None:
    """A restarted leader had lost five seconds, and granted leases by what it read."""
    clock = LeaderClock(0, 0)
    clock.arrived(2, 1_000)
    clock.applied(2, 1_000)
    clock.arrived(3, 6_000)  # stamped 1,010 by the leader that was away
    assert clock.read(6_000) == 6_000
    clock.applied(3, 1_010)
    assert clock.read(7_000) == 2_010


def test_stamps_that_were_handed_out_and_not_committed_are_forgotten() -> None:
    clock = LeaderClock(0, 0)
    clock.arrived(2, 5_000)
    assert clock.stamp(5_000) == 5_000
    clock.resigned()
    clock.arrived(2, 5_100)  # another leader's entry replaced it
    clock.applied(2, 4_000)
    assert clock.read(5_200) == 4_100


def test_entries_found_at_the_start_count_from_the_start() -> None:
    clock = LeaderClock(0, 50_000)
    clock.applied(7, 900)
    assert clock.read(50_300) == 1_200


def test_a_snapshot_counts_from_its_arrival_and_what_was_in_the_log_is_void() -> None:
    clock = LeaderClock(0, 0)
    clock.arrived(2, 10)
    clock.restored(3_000, 500)
    clock.arrived(21, 600)
    clock.applied(21, 3_090)
    assert clock.read(700) == 3_190


def test_a_follower_with_a_fast_clock_is_set_right_by_each_stamp() -> None:
    clock = LeaderClock(0, 0)
    for second in range(1, 3_600):
        clock.arrived(second, second * 1_010)
        clock.applied(second, second * 1_000)
    assert clock.read(3_599 * 1_010) == 3_599_000


def test_a_leaders_own_entries_move_nothing() -> None:
    clock = LeaderClock(500, 0)
    for index in range(2, 50):
        clock.arrived(index, index * 10)
        assert clock.stamp(index * 10) == 500 + index * 10
        clock.applied(index, 500 + index * 10)
    assert clock.read(1_000) == 1_500


@given(
    st.lists(
        st.tuples(st.integers(0, 2_000), st.integers(0, 2_000), st.booleans(), st.booleans()),
        max_size=30,
    )
)
def test_however_leaders_change_time_neither_goes_back_nor_runs_ahead(
    terms: list[tuple[int, int, bool, bool]],
) -> None:
    """Two members take turns; each stamps an entry that the other gets later, or at a restart.

    Whatever was missed, a new stamp is at most the one before it plus the time that passed.
    """
    clocks = [LeaderClock(0, 0), LeaderClock(0, 0)]
    now_ms, stamp_ms, stamped_at_ms, index = 0, 0, 0, 1
    for delay_ms, pause_ms, leader, restarts in terms:
        now_ms += pause_ms
        if restarts:
            clocks[leader] = LeaderClock(0, now_ms)
        clock = clocks[leader]
        clock.resigned()
        clock.applied(index, stamp_ms)
        stamp = clock.stamp(now_ms)
        assert stamp_ms <= stamp <= stamp_ms + now_ms - stamped_at_ms
        index, stamp_ms, stamped_at_ms = index + 1, stamp, now_ms
        clock.arrived(index, now_ms)
        now_ms += delay_ms
        clocks[not leader].arrived(index, now_ms)
