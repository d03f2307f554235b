"""The replicated ring: an epoch names one ring, a name has one server."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    EnterRing,
    Incarnation,
    LeaveRing,
    RingCommand,
    RingState,
    Server,
    apply,
    without_member,
)
from distsync_node.raft.types import MemberId


def server(name: str, incarnation: int = 1, member: str = "") -> Server:
    return Server(
        name=name, member=MemberId(member or f"id-{name}"), incarnation=Incarnation(incarnation)
    )


def leave(one: Server) -> LeaveRing:
    return LeaveRing(name=one.name, member=one.member, incarnation=one.incarnation)


def ring_of(*servers: Server) -> RingState:
    state = EMPTY_RING
    for one in servers:
        state = apply(state, EnterRing(server=one))
    return state


def test_each_entry_raises_the_epoch_and_servers_are_sorted() -> None:
    state = ring_of(server("b"), server("a"))
    assert state.epoch == 2
    assert [one.name for one in state.servers] == ["a", "b"]
    assert state.ring().nodes == ("a", "b")


def test_the_first_entry_fixes_the_number_of_virtual_nodes() -> None:
    first = apply(EMPTY_RING, EnterRing(server=server("a"), virtual_nodes=8))
    assert first.virtual_nodes == first.ring().virtual_nodes == 8
    second = apply(first, EnterRing(server=server("b"), virtual_nodes=16))
    assert second.virtual_nodes == 8
    emptied = apply(apply(second, leave(server("a"))), leave(server("b")))
    again = apply(emptied, EnterRing(server=server("c"), virtual_nodes=16))
    assert again.virtual_nodes == 8


def test_entering_again_changes_nothing() -> None:
    state = ring_of(server("a"))
    assert apply(state, EnterRing(server=server("a"))) is state


def test_a_new_incarnation_takes_the_place_of_the_old_under_a_new_epoch() -> None:
    state = apply(ring_of(server("a")), EnterRing(server=server("a", incarnation=2)))
    assert state.epoch == 2
    assert state.servers == (server("a", incarnation=2),)


def test_a_removal_of_an_old_incarnation_is_a_no_op() -> None:
    state = ring_of(server("a", incarnation=2))
    assert apply(state, leave(server("a", incarnation=1))) is state
    assert apply(state, leave(server("b"))) is state
    assert apply(state, leave(server("a", incarnation=2))).servers == ()


def test_a_wiped_node_under_a_new_id_keeps_its_name_and_so_its_keys() -> None:
    before = ring_of(server("a"), server("b"))
    after = apply(before, EnterRing(server=server("a", member="new")))
    keys = [f"k{i}" for i in range(100)]
    assert [before.ring().owner(key) for key in keys] == [after.ring().owner(key) for key in keys]


def test_a_member_removed_from_the_cluster_leaves_the_ring() -> None:
    state = ring_of(server("a"), server("b"))
    assert without_member(state, MemberId("id-b")).servers == (server("a"),)
    assert without_member(state, MemberId("x")) is state


def test_who_left_without_being_known_to_have_ended_is_in_doubt_until_it_is() -> None:
    removed = without_member(ring_of(server("a"), server("b")), MemberId("id-b"))
    assert removed.in_doubt == (server("b"),)
    replaced = apply(removed, EnterRing(server=server("a", incarnation=2)))
    assert replaced.in_doubt == (server("b"), server("a"))
    ended = apply(replaced, leave(server("b")))
    assert (ended.epoch, ended.in_doubt) == (replaced.epoch, (server("a"),))
    assert apply(ended, leave(server("b"))) is ended


def test_who_leaves_by_its_ended_lease_is_not_in_doubt() -> None:
    assert apply(ring_of(server("a")), leave(server("a"))).in_doubt == ()


def test_who_comes_back_is_not_in_doubt() -> None:
    removed = without_member(ring_of(server("a")), MemberId("id-a"))
    assert apply(removed, EnterRing(server=server("a"))).in_doubt == ()


servers = st.builds(server, st.sampled_from("abc"), st.integers(1, 3))
commands: st.SearchStrategy[RingCommand] = st.one_of(
    servers.map(lambda one: EnterRing(server=one)), servers.map(leave)
)


@given(st.lists(commands, max_size=30))
def test_an_epoch_names_one_ring(steps: list[RingCommand]) -> None:
    state, seen = EMPTY_RING, {EMPTY_RING.epoch: EMPTY_RING}
    for command in steps:
        after = apply(state, command)
        assert (after.epoch == state.epoch) == (after.servers == state.servers)
        assert len({one.name for one in after.servers}) == len(after.servers)
        assert seen.setdefault(after.epoch, after).servers == after.servers
        assert (after.hash() == state.hash()) == (after == state)
        state = after
