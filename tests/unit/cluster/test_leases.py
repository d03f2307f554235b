"""A lease ends at its holder before the leader may give its place away."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsync_node.cluster.leases import (
    LeaseGrant,
    LeaseHolder,
    LeaseOptions,
    LeaseRequest,
    LeaseTable,
    Verdict,
)
from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    EnterRing,
    Epoch,
    Incarnation,
    LeaveRing,
    RingState,
    Server,
    apply,
    without_member,
)
from distsync_node.raft.types import MemberId, RaftOptions

OPTIONS = LeaseOptions()
A = Server(name="a", member=MemberId("id-a"), incarnation=Incarnation(1))
A2 = Server(name="a", member=MemberId("id-a"), incarnation=Incarnation(2))
RING = apply(EMPTY_RING, EnterRing(server=A))
SETTLED_MS = OPTIONS.takeover_ms + 1
ELECTION_MS = RaftOptions().election_timeout_max_ms


def ask(
    table: LeaseTable,
    ring: RingState = RING,
    *,
    now_ms: int,
    server: Server = A,
    acknowledged: int | None = None,
    contact_ms: int | None = -1,
    draining: bool = False,
) -> Verdict:
    epoch = ring.epoch if acknowledged is None else Epoch(acknowledged)
    return table.request(
        LeaseRequest(server, 7, epoch, draining),
        ring,
        now_ms=now_ms,
        quorum_contact_ms=now_ms if contact_ms == -1 else contact_ms,
    )


def leave(server: Server) -> LeaveRing:
    return LeaveRing(name=server.name, member=server.member, incarnation=server.incarnation)


def test_a_serving_node_gets_a_lease_of_the_current_epoch() -> None:
    verdict = ask(LeaseTable(OPTIONS, RING, 0), now_ms=10)
    assert verdict.grant == LeaseGrant(Incarnation(1), 7, RING.epoch, OPTIONS.lease_ms)


def test_a_newcomer_enters_the_ring_before_it_gets_a_lease() -> None:
    assert ask(LeaseTable(OPTIONS, RING, 0), EMPTY_RING, now_ms=10) == Verdict(
        command=EnterRing(server=A)
    )


def test_an_entry_names_the_virtual_nodes_that_the_leader_was_told() -> None:
    table = LeaseTable(OPTIONS, EMPTY_RING, 0, virtual_nodes=8)
    assert ask(table, EMPTY_RING, now_ms=10) == Verdict(
        command=EnterRing(server=A, virtual_nodes=8)
    )


def test_nothing_is_granted_on_old_contact_to_a_quorum() -> None:
    table = LeaseTable(OPTIONS, RING, 0)
    assert ask(table, now_ms=1_000, contact_ms=1_000 - OPTIONS.freshness_ms).grant is not None
    assert ask(table, now_ms=1_000, contact_ms=999 - OPTIONS.freshness_ms).grant is None
    assert ask(table, now_ms=1_000, contact_ms=None).grant is None


def test_a_node_that_has_not_acknowledged_the_epoch_gets_nothing() -> None:
    assert ask(LeaseTable(OPTIONS, RING, 0), now_ms=10, acknowledged=0) == Verdict()


def test_a_silent_node_is_taken_out_only_after_its_lease_and_drift() -> None:
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    assert ask(table, now_ms=0).grant is not None
    assert table.overdue(RING, OPTIONS.granted_ms - 1) == []
    assert table.next_deadline_ms(RING) == OPTIONS.granted_ms
    assert table.overdue(RING, OPTIONS.granted_ms) == [leave(A)]


def test_a_new_leader_takes_nobody_out_while_earlier_grants_may_live() -> None:
    table = LeaseTable(OPTIONS, RING, 0)
    assert table.overdue(RING, OPTIONS.takeover_ms - 1) == []
    assert table.overdue(RING, OPTIONS.takeover_ms) == [leave(A)]


def test_from_the_proposal_on_the_leaving_node_gets_nothing() -> None:
    table = LeaseTable(OPTIONS, RING, 0)
    assert table.overdue(RING, SETTLED_MS) == [leave(A)]
    assert ask(table, now_ms=SETTLED_MS) == Verdict()
    assert table.overdue(RING, SETTLED_MS + 1) == []
    table.proposal_failed(leave(A))
    assert ask(table, now_ms=SETTLED_MS + 2).grant is not None


def test_a_draining_node_leaves_at_once() -> None:
    table = LeaseTable(OPTIONS, RING, 0)
    assert ask(table, now_ms=10, draining=True) == Verdict(command=leave(A))
    assert ask(table, now_ms=20) == Verdict()


def test_a_restarted_node_waits_for_the_lease_of_its_earlier_incarnation() -> None:
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    assert ask(table, now_ms=0).grant is not None
    assert ask(table, now_ms=10, server=A2) == Verdict()
    assert ask(table, now_ms=OPTIONS.granted_ms, server=A2) == Verdict(command=EnterRing(server=A2))


def test_a_node_that_another_is_to_replace_gets_nothing_any_more() -> None:
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    enter = EnterRing(server=A2)
    assert ask(table, now_ms=0, server=A2) == Verdict(command=enter)
    assert ask(table, now_ms=1) == Verdict()
    table.proposal_failed(enter)
    assert ask(table, now_ms=2).grant is not None


def test_who_is_in_doubt_is_struck_off_once_its_lease_has_ended() -> None:
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    assert ask(table, now_ms=0).grant is not None
    removed = without_member(RING, A.member)
    table.ring_changed(removed, 1)
    assert table.overdue(removed, OPTIONS.granted_ms - 1) == []
    assert table.next_deadline_ms(removed) == OPTIONS.granted_ms
    assert table.overdue(removed, OPTIONS.granted_ms) == [leave(A)]
    assert table.overdue(removed, OPTIONS.granted_ms + 1) == []


def test_a_new_leader_strikes_nobody_off_while_earlier_grants_may_live() -> None:
    removed = without_member(RING, A.member)
    table = LeaseTable(OPTIONS, removed, 0)
    assert table.overdue(removed, OPTIONS.takeover_ms - 1) == []
    assert table.overdue(removed, OPTIONS.takeover_ms) == [leave(A)]


def test_a_server_that_left_is_forgotten() -> None:
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    table.overdue(RING, SETTLED_MS)
    gone = apply(RING, leave(A))
    table.ring_changed(gone, SETTLED_MS)
    back = apply(gone, EnterRing(server=A))
    assert ask(table, back, now_ms=SETTLED_MS).grant is not None


def test_a_server_that_enters_late_is_not_overdue_at_once() -> None:
    table = LeaseTable(OPTIONS, EMPTY_RING, 0)
    table.ring_changed(RING, 50_000)
    assert table.overdue(RING, 50_000 + OPTIONS.granted_ms - 1) == []
    assert table.overdue(RING, 50_000 + OPTIONS.granted_ms) == [leave(A)]


def test_a_lease_counts_from_the_sending_of_its_request() -> None:
    holder = LeaseHolder(OPTIONS, 0)
    request = holder.heartbeat(A, Epoch(1), 100)
    holder.granted(LeaseGrant(Incarnation(1), request.sequence, Epoch(1), 2_000))
    assert holder.is_valid(Epoch(1), 2_099)
    assert not holder.is_valid(Epoch(1), 2_100)
    assert not holder.is_valid(Epoch(2), 200)


def test_a_late_grant_neither_shortens_a_lease_nor_brings_back_an_old_epoch() -> None:
    holder = LeaseHolder(OPTIONS, 0)
    first = holder.heartbeat(A, Epoch(1), 0)
    second = holder.heartbeat(A, Epoch(2), 500)
    holder.granted(LeaseGrant(Incarnation(1), second.sequence, Epoch(2), 2_000))
    holder.granted(LeaseGrant(Incarnation(1), first.sequence, Epoch(1), 2_000))
    assert holder.ends_ms(Epoch(2)) == 2_500
    assert holder.ends_ms(Epoch(1)) == 0


def test_a_grant_that_nobody_asked_for_is_ignored() -> None:
    holder = LeaseHolder(OPTIONS, 0)
    holder.granted(LeaseGrant(Incarnation(1), 1, Epoch(1), 2_000))
    assert not holder.is_valid(Epoch(1), 1)


def test_a_node_that_leaves_has_no_lease_from_before_it_says_so_on() -> None:
    holder = LeaseHolder(OPTIONS, 0)
    request = holder.heartbeat(A, Epoch(1), 0)
    holder.granted(LeaseGrant(Incarnation(1), request.sequence, Epoch(1), 2_000))
    on_its_way = holder.heartbeat(A, Epoch(1), 100)
    assert not on_its_way.draining
    assert holder.leave() == Epoch(1)
    assert not holder.is_valid(Epoch(1), 101)
    holder.granted(LeaseGrant(Incarnation(1), on_its_way.sequence, Epoch(1), 2_000))
    assert not holder.is_valid(Epoch(1), 102)
    assert holder.heartbeat(A, Epoch(1), 103).draining


@given(
    delays=st.lists(
        st.tuples(st.integers(0, 900), st.integers(0, 900), st.booleans()), max_size=20
    ),
    holder_rate=st.integers(990, 1_010),
)
def test_no_lease_outlives_the_leaders_table(
    delays: list[tuple[int, int, bool]], holder_rate: int
) -> None:
    """Requests and grants late or lost, clocks 1 % apart: the table's end is never the earlier."""
    table = LeaseTable(OPTIONS, RING, -SETTLED_MS)
    holder = LeaseHolder(OPTIONS, 0)

    def holder_clock(true_ms: int) -> int:
        return true_ms * holder_rate // 1_000

    true_ms = 0
    for there_ms, back_ms, lost in delays:
        request = holder.heartbeat(A, RING.epoch, holder_clock(true_ms))
        arrived_ms = true_ms + there_ms
        verdict = table.request(request, RING, now_ms=arrived_ms, quorum_contact_ms=arrived_ms)
        if verdict.grant is not None and not lost:
            holder.granted(verdict.grant)
        taken_out_ms = table.next_deadline_ms(RING)
        assert taken_out_ms is not None
        assert not holder.is_valid(RING.epoch, holder_clock(taken_out_ms))
        true_ms = arrived_ms + back_ms


@pytest.mark.parametrize("election_ms", [ELECTION_MS, 1_000])
def test_what_a_killed_node_served_is_served_again_well_within_four_seconds(
    election_ms: int,
) -> None:
    """One election, if it led, and the lease: a second is left for all else. 1,000: Kubernetes."""
    assert election_ms + OPTIONS.takeover_ms <= 3_000


def test_a_lease_outlives_the_election_of_another_leader() -> None:
    """Also one that was renewed just before the leader died, less a heartbeat."""
    left_ms = OPTIONS.lease_ms - OPTIONS.heartbeat_ms
    assert left_ms >= 1_000 + OPTIONS.drift_ms
