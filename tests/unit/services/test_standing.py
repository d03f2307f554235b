"""What a node says of itself."""

from __future__ import annotations

from distsync_node.raft.types import AppendRequest, LogIndex, Term
from distsync_node.services.interface import NodeStatus
from distsync_node.services.runtime import boottime_ms
from distsync_node.services.standing import LEADER_WAIT_MS, status_of
from unit.services.nodes import TestNode, from_b, vote_request


def status(node: TestNode, *, later_ms: int = 0, draining: bool = False) -> NodeStatus:
    return status_of("n1", node.runtime, draining=draining, now_ms=boottime_ms() + later_ms)


def heartbeat(term: int) -> AppendRequest:
    nothing, never = LogIndex(0), Term(0)
    return AppendRequest(Term(term), nothing, never, nothing, 1)


async def test_a_member_that_had_a_leader_and_lost_it_is_ready(member: TestNode) -> None:
    assert not status(member).ready
    member.runtime.receive(from_b(member, heartbeat(5)), lambda _: True)
    assert status(member).leader is not None
    assert status(member).ready
    member.runtime.receive(from_b(member, vote_request(6)), lambda _: True)
    assert status(member).leader is None
    assert status(member).ready
    assert not status(member, draining=True).ready


async def test_a_member_that_never_hears_a_leader_is_ready_after_a_while(member: TestNode) -> None:
    assert not status(member, later_ms=LEADER_WAIT_MS - 1_000).ready
    assert status(member, later_ms=LEADER_WAIT_MS).ready
    assert not status(member, later_ms=LEADER_WAIT_MS, draining=True).ready
