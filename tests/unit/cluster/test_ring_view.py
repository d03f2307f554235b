"""The view of the ring only moves forward."""

from __future__ import annotations

from distsync_node.cluster.ring_state import EMPTY_RING, EnterRing, Incarnation, Server, apply
from distsync_node.cluster.ring_view import RingView
from distsync_node.raft.types import MemberId


def server(name: str) -> Server:
    return Server(name=name, member=MemberId(f"id-{name}"), incarnation=Incarnation(1))


def test_a_newer_ring_is_adopted_and_an_older_one_is_not() -> None:
    one = apply(EMPTY_RING, EnterRing(server=server("a")))
    two = apply(one, EnterRing(server=server("b")))
    view = RingView()
    assert view.owner("k") is None
    assert view.adopt(two)
    assert not view.adopt(one)
    assert not view.adopt(two)
    assert view.epoch == 2
    assert sum(view.shares().values()) == 1.0


def test_the_owner_and_its_successors_are_servers_of_the_ring() -> None:
    view = RingView()
    state = EMPTY_RING
    for name in "abc":
        state = apply(state, EnterRing(server=server(name)))
    view.adopt(state)
    order = view.successors("k")
    assert order[0] == view.owner("k")
    assert sorted(one.name for one in order) == ["a", "b", "c"]
