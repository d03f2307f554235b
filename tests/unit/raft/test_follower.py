"""A follower's side of replication: thesis §3.5 and what it says about the disk."""

from __future__ import annotations

import pytest

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import (
    AppendResponse,
    Apply,
    HardState,
    LogIndex,
    Persist,
    Role,
    RoleChanged,
    Term,
)
from unit.raft.cluster import configuration, snapshot
from unit.raft.single import (
    Single,
    accepted,
    append,
    command,
    follower,
    log_of,
    of,
    refused,
    sent,
    sent_after_write,
)

# --- Durability -----------------------------------------------------------------------------


def test_entries_are_answered_when_they_are_written() -> None:
    single = follower()
    effects = single.receive("2", append(2, (1, 1), log_of(2, 2), round_number=7))
    assert sent(effects) == []
    assert sent_after_write(effects) == [accepted(2, 3, round_number=7)]
    assert of(effects, Persist)[0].entries == log_of(2, 2)
    assert (single.core.last_index, single.core.durable_index) == (3, 1)
    single.write()
    assert single.core.durable_index == 3


def test_a_heartbeat_is_answered_at_once_up_to_what_is_written() -> None:
    single = follower(2)
    single.receive("2", append(2, (2, 2), log_of(2, 2, first=3)))
    effects = single.receive("2", append(2, (4, 2), round_number=8))
    assert sent(effects) == [accepted(2, 2, round_number=8)]
    assert of(effects, Persist) == []
    assert sent(single.write()) == [accepted(2, 4)]
    assert sent(single.receive("2", append(2, (4, 2)))) == [accepted(2, 4)]


def test_repeated_entries_are_answered_at_once_and_not_written_again() -> None:
    single = follower()
    request = append(2, (1, 1), log_of(2, 2))
    single.receive("2", request)
    repeated = single.receive("2", request)
    assert sent(repeated) == [accepted(2, 1)]
    assert of(repeated, Persist) == []


def test_the_first_answer_in_a_term_waits_until_the_term_is_written() -> None:
    single = Single(term=2, entries=log_of(2))
    effects = single.receive("2", append(3, (2, 2)))
    assert sent(effects) == []
    assert sent_after_write(effects) == [accepted(3, 2)]
    assert of(effects, Persist)[0].hard_state == HardState(Term(3), None, LogIndex(1))
    waiting = single.receive("2", append(3, (2, 2), round_number=2))
    assert sent_after_write(waiting) == [accepted(3, 2, round_number=2)]
    single.write()
    assert sent(single.receive("2", append(3, (2, 2)))) == [accepted(3, 2)]


def test_a_refusal_in_a_new_term_waits_until_the_term_is_written() -> None:
    single = Single(term=2)
    effects = single.receive("2", append(3, (5, 2)))
    assert sent(effects) == []
    assert sent_after_write(effects) == [refused(3, 5, (2, 0))]


def test_committed_entries_are_applied_before_they_are_durable_here() -> None:
    single = follower()
    effects = single.receive("2", append(2, (1, 1), log_of(2, 2), commit=3))
    kinds = [type(effect) for effect in effects]
    assert kinds == [Persist, Apply]
    assert (single.core.applied_index, single.core.durable_index) == (3, 1)


# --- The consistency check ------------------------------------------------------------------


def test_an_append_behind_the_end_is_refused_with_the_end() -> None:
    single = follower(2, 2)
    effects = single.receive("2", append(2, (9, 2), log_of(2, first=10), round_number=4))
    assert sent(effects) == [refused(2, 9, (4, 0), round_number=4)]
    assert single.core.last_index == 3


def test_a_conflict_is_refused_with_the_first_entry_of_its_term() -> None:
    single = follower(2, 3, 3, 3, term=5)
    effects = single.receive("2", append(5, (5, 4)))
    assert sent(effects) == [refused(5, 5, (3, 3))]
    assert single.core.last_index == 5


def test_a_hint_never_goes_below_what_is_committed() -> None:
    single = follower(2, 2, 2, 2, term=5)
    single.receive("2", append(5, (3, 2), commit=3))
    assert sent(single.receive("2", append(5, (5, 4)))) == [refused(5, 5, (4, 2))]


@pytest.mark.parametrize(
    ("prev", "terms", "expected"),
    [
        ((3, 2), (2,), (2, 2, 2)),
        ((3, 2), (5,), (2, 2, 5)),
        ((2, 2), (5,), (2, 5)),
        ((2, 2), (2, 5), (2, 2, 5)),
        ((1, 1), (2, 2), (2, 2, 3)),
        ((1, 1), (4,), (4,)),
    ],
)
def test_only_what_conflicts_is_replaced(
    prev: tuple[int, int], terms: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """The log is 2 2 3 from index 2 on."""
    single = follower(2, 2, 3, term=5)
    if prev == (3, 2) and terms == (2,):
        single = follower(2, 2, term=5)
    single.receive("2", append(5, prev, log_of(*terms, first=prev[0] + 1)))
    log = single.core._state.log
    assert tuple(entry.term for entry in log.slice(2, log.last_index)) == expected


def test_a_delayed_append_does_not_cut_a_matching_tail() -> None:
    single = follower()
    single.receive("2", append(2, (1, 1), log_of(2, 2, 2)))
    single.write()
    effects = single.receive("2", append(2, (1, 1), log_of(2)))
    assert sent(effects) == [accepted(2, 2)]
    assert single.core.last_index == 4


def test_a_delayed_heartbeat_vouches_only_for_what_it_named() -> None:
    """What lies behind may be of an earlier leader and conflict."""
    single = follower(2, 2, 2, term=5)
    assert sent(single.receive("2", append(5, (2, 2)))) == [accepted(5, 2)]


def test_a_committed_entry_is_never_replaced() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    with pytest.raises(InvariantViolation):
        single.receive("2", append(2, (2, 2), [command(3, 1)]))


def test_a_leader_that_disagrees_on_a_committed_entry_stops_the_node() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    with pytest.raises(InvariantViolation):
        single.receive("2", append(2, (3, 1)))


def test_replaced_entries_are_vouched_for_only_when_written_anew() -> None:
    """An old write that reports late says nothing of the entries that replaced it."""
    single = follower()
    single.receive("2", append(2, (1, 1), log_of(2, 2)))
    single.receive("3", append(3, (1, 1), log_of(3, 3)))
    first = single.persisted(1)
    assert single.core.durable_index == 1
    assert of(first, Apply) == []
    single.write()
    assert single.core.durable_index == 3


# --- Commit ---------------------------------------------------------------------------------


def test_the_leaders_commit_counts_up_to_what_matched() -> None:
    single = follower(2, 2, 2, term=5)
    single.receive("2", append(5, (2, 2), commit=4))
    assert single.core.commit_index == 2
    effects = single.receive("2", append(5, (2, 2), log_of(5, first=3), commit=9))
    assert single.core.commit_index == 3
    assert [apply.entries for apply in of(effects, Apply)] == [log_of(5, first=3)]


def test_a_smaller_commit_changes_nothing() -> None:
    single = follower(2, 2)
    single.receive("2", append(2, (3, 2), commit=3))
    assert of(single.receive("2", append(2, (3, 2), commit=1)), Apply) == []
    assert single.core.commit_index == 3


# --- Terms ----------------------------------------------------------------------------------


def test_an_append_of_an_earlier_term_is_refused_with_the_present_one() -> None:
    single = Single(term=5, entries=log_of(2))
    effects = single.receive("2", append(4, (2, 2), log_of(4, first=3), round_number=3))
    assert sent(effects) == [AppendResponse(Term(5), 3, accepted=False, match_index=LogIndex(0))]
    assert single.core.last_index == 2
    assert single.core.leader is None


def test_the_leader_becomes_known_by_its_first_message() -> None:
    single = Single(term=2)
    changes = of(single.receive("2", append(2, (1, 1))), RoleChanged)
    assert [(c.role, c.leader) for c in changes] == [(Role.FOLLOWER, "2")]
    assert of(single.receive("2", append(2, (1, 1))), RoleChanged) == []


def test_each_message_of_the_leader_puts_the_election_off() -> None:
    single = Single(term=2, timeout_ms=400)
    for _ in range(10):
        single.tick(after_ms=300)
        single.receive("2", append(2, (1, 1)))
    assert single.core.role is Role.FOLLOWER
    assert single.core.next_deadline_ms() == single.now_ms + 400


def test_an_append_from_a_leader_unknown_to_the_configuration_is_taken() -> None:
    """A new member does not know the group it joins before the log tells it."""
    single = Single("9", me="1", term=2)
    effects = single.receive("2", append(2, (1, 1), log_of(2)))
    assert sent_after_write(effects) == [accepted(2, 2)]


# --- Below the base -------------------------------------------------------------------------


def test_an_append_that_starts_below_what_is_kept_is_taken_from_there_on() -> None:
    single = Single(
        term=2, entries=log_of(2, 2, 2, first=5), base=snapshot(configuration("123"), 6, 2)
    )
    effects = single.receive("2", append(2, (3, 2), log_of(2, 2, 2, 2, 2, first=4)))
    assert sent_after_write(effects) == [accepted(2, 8)]
    assert of(effects, Persist)[0].entries == log_of(2, first=8)
    repeated = single.receive("2", append(2, (2, 2), log_of(2, first=3)))
    assert sent(repeated) == [accepted(2, 3)]
