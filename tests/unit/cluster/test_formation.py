"""A cluster is created once, by one node, and only when nobody has one."""

from __future__ import annotations

from distsync_node.cluster.formation import (
    CreateCluster,
    Decision,
    Identity,
    JoinCluster,
    Wait,
    decide,
)
from distsync_node.raft.types import Member, MemberId

LISTED = ("a", "b", "c")


def member(name: str, member_id: str = "") -> Member:
    return Member(id=MemberId(member_id or f"id-{name}"), name=name, peer_url=f"http://{name}")


def empty(name: str) -> Identity:
    return Identity(member=member(name), uninitialised=True, cluster_id=None)


def belongs(name: str, *known: str, cluster: str = "k", leader: str | None = "b") -> Identity:
    return Identity(
        member=member(name),
        uninitialised=False,
        cluster_id=cluster,
        known_ids=tuple(MemberId(item) for item in known),
        leader=member(leader) if leader else None,
    )


def act(own: str, *, may_create: bool = True, **answers: Identity | None) -> Decision:
    return decide(empty(own), LISTED, answers, may_create=may_create)


def test_the_first_listed_creates_the_cluster_when_all_are_empty() -> None:
    assert act("a", b=empty("b"), c=empty("c")) == CreateCluster(
        members=(member("a"), member("b"), member("c"))
    )


def test_others_never_create() -> None:
    assert isinstance(act("b", a=empty("a"), c=empty("c")), Wait)


def test_a_silent_node_delays_creation() -> None:
    assert isinstance(act("a", b=empty("b"), c=None), Wait)


def test_a_node_that_is_joining_or_removed_forbids_creation() -> None:
    joining = Identity(member=member("c"), uninitialised=False, cluster_id=None)
    assert isinstance(act("a", b=empty("b"), c=joining), Wait)


def test_one_node_under_two_names_is_no_second_node() -> None:
    decision = act("a", b=empty("b"), c=empty("b"))
    assert decision == Wait(reason="at the address of c in the list answers b")


def test_one_id_under_two_names_is_no_second_node() -> None:
    copy = Identity(member=member("c", "id-b"), uninitialised=True, cluster_id=None)
    decision = act("a", b=empty("b"), c=copy)
    assert isinstance(decision, Wait)
    assert "one id" in decision.reason


def test_any_cluster_forbids_creation_even_if_others_are_silent() -> None:
    wiped = act("a", b=belongs("b", "old-a", "id-b", "id-c"), c=None)
    assert wiped == JoinCluster(cluster_id="k", leader=member("b"))


def test_a_listed_id_waits_for_its_leader_instead_of_joining() -> None:
    assert isinstance(act("a", b=belongs("b", "id-a", "id-b"), c=None), Wait)


def test_without_a_leader_joining_waits() -> None:
    assert isinstance(act("a", b=belongs("b", "id-b", leader=None), c=None), Wait)


def test_two_different_clusters_are_not_chosen_between() -> None:
    decision = act("a", b=belongs("b"), c=belongs("c", cluster="other"))
    assert isinstance(decision, Wait)
    assert "different clusters" in decision.reason


def test_a_node_that_may_not_create_waits_for_an_operator() -> None:
    assert isinstance(act("a", may_create=False, b=empty("b"), c=empty("c")), Wait)
