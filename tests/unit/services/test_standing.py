"""What a node says of itself."""

from __future__ import annotations

from distsync_node.cluster.ring_state import Epoch, Incarnation
from distsync_node.raft.types import AppendRequest, LogIndex, Term
from distsync_node.services.interface import NodeStatus
from distsync_node.services.runtime import boottime_ms
from distsync_node.services.standing import LEADER_WAIT_MS, status_of
from unit.services.nodes import TestCluster, TestNode, eventually, from_b, vote_request


def status(
    node: TestNode,
    *,
    later_ms: int = 0,
    draining: bool = False,
    epoch: Epoch | None = None,
    is_at_work: bool = True,
) -> NodeStatus:
    return status_of(
        "n1",
        node.runtime,
        ring_epoch=node.runtime.replica.ring.epoch if epoch is None else epoch,
        is_at_work=is_at_work,
        draining=draining,
        now_ms=boottime_ms() + later_ms,
    )


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


async def test_a_node_serves_its_part_of_the_newest_ring_for_as_long_as_its_lease(
    cluster: TestCluster,
) -> None:
    assert not any(status(node, epoch=Epoch(0)).serving for node in cluster.nodes)
    await eventually(lambda: all(status(node).serving for node in cluster.nodes), "all serve")
    node = cluster.following[0]
    epoch = status(node).ring_epoch
    assert epoch == len(cluster.nodes)
    assert not status(node, epoch=Epoch(epoch + 1)).serving, "its log does not know that ring"
    assert not status(node, is_at_work=False).serving
    assert not status(node, draining=True).serving
    assert not status(node, later_ms=node.options.lease.lease_ms).serving


async def test_a_process_does_not_serve_while_the_ring_names_the_one_before_it(
    cluster: TestCluster,
) -> None:
    await eventually(lambda: all(status(node).serving for node in cluster.nodes), "all serve")
    node = cluster.following[0]
    participant = node.runtime.replica.participant
    assert participant is not None
    participant.serving.incarnation = Incarnation(participant.serving.incarnation + 1)
    assert node.name in [server.name for server in node.runtime.replica.ring.servers]
    assert not status(node).serving
    await eventually(lambda: status(node).serving, "the lease of the one before it has ended")


async def test_a_node_says_that_it_serves_once_each_of_its_services_does(
    cluster: TestCluster,
) -> None:
    node = cluster.leading
    asked = list[Epoch]()
    answer = False

    def is_at_work(epoch: Epoch) -> bool:
        asked.append(epoch)
        return answer

    await eventually(lambda: node.service.status().serving, "it serves")
    node.service.before_serving(is_at_work)
    assert not node.service.status().serving
    answer = True
    await eventually(lambda: node.service.status().serving, "it serves again")
    assert asked[-1] == node.service.status().ring_epoch == node.service.ring().epoch
