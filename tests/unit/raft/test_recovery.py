"""What a restart must and must not conclude from the disk."""

from __future__ import annotations

from distsync_node.raft.types import (
    Apply,
    ConfigOperation,
    ConfigurationChanged,
    Persist,
    Role,
)
from unit.raft.cluster import Cluster, configuration, snapshot
from unit.raft.single import Single, command, config_entry, log_of, of, sent

ADD_4 = config_entry(2, 1, ConfigOperation.ADD_LEARNER, "4")
PROMOTE_4 = config_entry(3, 1, ConfigOperation.PROMOTE, "4")
ADD_5 = config_entry(4, 1, ConfigOperation.ADD_LEARNER, "5")


def test_only_the_snapshot_counts_as_committed() -> None:
    single = Single(entries=log_of(1, 1, 1))
    core = single.core
    assert (core.commit_index, core.applied_index) == (1, 1)
    assert (core.last_index, core.durable_index) == (4, 4)


def test_the_last_membership_change_in_the_log_may_be_uncommitted() -> None:
    single = Single(entries=(ADD_4,))
    assert single.core.commit_index == 1
    assert single.core.configuration.learners == ()


def test_a_later_membership_change_proves_the_earlier_ones() -> None:
    """A leader proposes one at a time, so the one before must have been committed."""
    single = Single(entries=(ADD_4, PROMOTE_4, ADD_5))
    assert (single.core.commit_index, single.core.applied_index) == (3, 1)
    effects = single.tick()
    assert [each.entries for each in of(effects, Apply)] == [(ADD_4, PROMOTE_4)]
    changes = of(effects, ConfigurationChanged)
    assert [c.configuration.voters for c in changes] == [("1", "2", "3"), ("1", "2", "3", "4")]


def test_a_proven_change_is_applied_before_a_campaign() -> None:
    single = Single(entries=(ADD_4, PROMOTE_4, ADD_5))
    assert single.core.next_deadline_ms() == single.now_ms
    single.tick()
    effects = single.time_out()
    assert single.core.role is Role.PRE_CANDIDATE
    assert [bool(sent(effects, voter)) for voter in "234"] == [True, True, True]


def test_the_commit_noted_with_the_hard_state_counts() -> None:
    single = Single(entries=(ADD_4, PROMOTE_4), commit=3)
    effects = single.tick()
    assert [each.entries for each in of(effects, Apply)] == [(ADD_4, PROMOTE_4)]
    assert single.core.configuration.voters == ("1", "2", "3", "4")


def test_a_noted_commit_beyond_the_log_counts_as_far_as_the_log_goes() -> None:
    assert Single(entries=(ADD_4,), commit=9).core.commit_index == 2


def test_an_applied_change_is_noted_at_once() -> None:
    single = Single(entries=(ADD_4,), commit=2)
    (persist,) = of(single.tick(), Persist)
    assert persist.hard_state is not None
    assert persist.hard_state.commit == 2


def test_a_restarted_group_does_without_a_voter_that_was_lost_after_a_promotion() -> None:
    """The leader knew that 3 votes; it restarts, and 1 never returns."""
    cluster = Cluster("12", "3")
    cluster.elect("2")
    cluster.propose_config("2", ConfigOperation.PROMOTE, "3")
    cluster.settle()
    for name in "123":
        cluster.crash(name)
    cluster.in_flight.clear()
    for name in "23":
        cluster.restart(name)
    cluster.wait(3_000)
    assert Role.LEADER in (cluster["2"].role, cluster["3"].role)


def test_a_restarted_group_of_members_that_all_came_after_the_snapshot_elects_a_leader() -> None:
    cluster = Cluster("1", "23")
    cluster.elect("1")
    for name in "23":
        cluster.propose_config("1", ConfigOperation.PROMOTE, name)
        cluster.settle()
    cluster.wait(200)
    for name in "123":
        cluster.crash(name)
    cluster.in_flight.clear()
    for name in "23":
        cluster.restart(name)
    cluster.wait(3_000)
    assert Role.LEADER in (cluster["2"].role, cluster["3"].role)


def test_changes_below_the_snapshot_are_not_counted() -> None:
    base = snapshot(configuration("123", "4", index=2), 2, 1)
    single = Single(base=base, entries=(ADD_4, PROMOTE_4))
    assert single.core.commit_index == 2
    assert single.core.configuration.learners == ("4",)


def test_entries_kept_below_the_snapshot_still_serve_followers() -> None:
    base = snapshot(configuration("123"), 4, 1)
    single = Single(base=base, entries=(command(2, 1), command(3, 1), command(4, 1)))
    assert (single.core.first_index, single.core.last_index) == (3, 4)


def test_all_members_restarted_at_once_lose_nothing() -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    for number in range(10):
        cluster.propose("1", f"entry {number}")
        cluster.settle()
    cluster.compact("2")
    for name in "123":
        cluster.crash(name)
    cluster.in_flight.clear()
    for name in "123":
        cluster.restart(name)
    cluster.wait(3_000)
    for name in "123":
        assert cluster.payloads(name) == [f"entry {number}" for number in range(10)]


def test_a_member_that_lost_unwritten_entries_gets_them_again() -> None:
    cluster = Cluster("123")
    cluster.elect("1")
    cluster.auto_disk = False
    cluster.propose("1", "a")
    cluster.propose("1", "b")
    cluster.settle()
    cluster.write("1")
    cluster.write("3")
    cluster.settle()
    assert cluster.payloads("1") == ["a", "b"]
    cluster.crash("2")
    cluster.restart("2")
    assert cluster["2"].last_index == 2
    cluster.auto_disk = True
    cluster.wait(300)
    assert cluster.payloads("2") == ["a", "b"]
