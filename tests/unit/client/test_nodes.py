"""Which endpoint is asked next, as a function of what was seen."""

from __future__ import annotations

from typing import Any

from distsync.models import ClusterStatus, Member
from distsync.nodes import Endpoint, NodeSet

A, B, C = "http://a:1", "http://b:1", "http://c:1"


def status(node: str = "a", **fields: Any) -> ClusterStatus:
    members = fields.pop("urls", {"a": A, "b": B, "c": C})
    defaults: dict[str, Any] = {
        "node": node,
        "member_id": node,
        "cluster_id": "one",
        "term": 1,
        "members": [Member(id=name, name=name, client_url=url) for name, url in members.items()],
    }
    return ClusterStatus(**{**defaults, **fields})


def endpoint(nodes: NodeSet, url: str) -> Endpoint:
    return next(e for e in nodes.endpoints if e.url == url)


def test_the_choice_sticks_until_it_fails() -> None:
    nodes = NodeSet((A, B, C), first=1)
    assert nodes.choose(0).url == B
    assert nodes.choose(0).url == B
    nodes.failed(nodes.choose(0), 0)
    assert nodes.choose(0).url == C
    nodes.failed(nodes.choose(0), 0)
    assert nodes.choose(0).url == A


def test_when_all_rest_the_one_whose_rest_ends_first_is_asked() -> None:
    nodes = NodeSet((A, B))
    nodes.failed(endpoint(nodes, A), 0)
    nodes.failed(endpoint(nodes, B), 0.1)
    assert nodes.choose(0.1).url == A
    nodes.failed(endpoint(nodes, A), 0.2)  # rests twice as long now
    assert nodes.choose(0.2).url == B


def test_a_rest_grows_and_ends_with_an_answer() -> None:
    nodes = NodeSet((A, B))
    a = endpoint(nodes, A)
    rests = []
    for _ in range(8):
        nodes.failed(a, 0)
        rests.append(a.rests_until)
    assert rests == sorted(rests)
    assert rests[-1] == 5.0
    nodes.answered(a)
    assert (a.failures, a.rests_until) == (0, 0.0)


def test_the_only_endpoint_is_asked_although_it_is_to_be_avoided() -> None:
    nodes = NodeSet((A,))
    assert nodes.choose(0, avoid=endpoint(nodes, A)).url == A


def test_a_configured_leader_comes_first() -> None:
    nodes = NodeSet((A, B, C))
    nodes.note_leader(C)
    assert nodes.choose(0).url == C
    assert nodes.choose(0, avoid=endpoint(nodes, C)).url == A
    nodes.failed(endpoint(nodes, C), 0)
    assert nodes.leader_url is None
    assert nodes.choose(0).url == A


def test_a_discovered_url_is_not_used_before_it_proved_itself() -> None:
    nodes = NodeSet((A,))
    nodes.note_status(endpoint(nodes, A), status(leader_url=B), 0)
    assert not nodes.leader_is_reachable
    assert nodes.choose(0).url == A
    assert {e.url for e in nodes.unproven(0)} == {B, C}
    nodes.note_status(endpoint(nodes, B), status("b", leader_url=B), 0)
    assert nodes.choose(0).url == B


def test_a_stranger_at_a_discovered_url_is_not_believed() -> None:
    nodes = NodeSet((A,))
    nodes.note_status(endpoint(nodes, A), status(leader_url=B), 0)
    for stranger in (
        status("b", cluster_id="two", leader_url=B),
        status("c", leader_url=B),
        status("b", cluster_id=None),
    ):
        nodes.note_status(endpoint(nodes, B), stranger, 0)
        assert not endpoint(nodes, B).usable
    assert nodes.cluster_id == "one"
    assert nodes.unproven(0) == [endpoint(nodes, C)]
    assert len(nodes.unproven(100)) == 2


def test_a_failed_discovered_url_must_prove_itself_anew() -> None:
    nodes = NodeSet((A,))
    nodes.note_status(endpoint(nodes, A), status(leader_url=B), 0)
    nodes.note_status(endpoint(nodes, B), status("b", leader_url=B), 0)
    nodes.failed(endpoint(nodes, B), 0)
    assert nodes.choose(100).url == A
    nodes.note_leader(B)
    assert nodes.choose(100).url == A
    nodes.note_status(endpoint(nodes, B), status("b", leader_url=B), 100)
    assert nodes.choose(100).url == B


def test_a_forward_to_the_leader_takes_the_place_of_its_url() -> None:
    unreachable = {"a": "http://10.0.0.1:1", "b": "http://10.0.0.2:1"}
    nodes = NodeSet((A, B))
    nodes.note_status(endpoint(nodes, A), status("a", urls=unreachable), 0)
    nodes.note_status(endpoint(nodes, B), status("b", urls=unreachable), 0)
    nodes.note_leader(unreachable["b"])
    assert nodes.choose(0).url == B


def test_members_that_left_are_forgotten_and_configured_urls_never() -> None:
    nodes = NodeSet((A,))
    nodes.note_status(endpoint(nodes, A), status(), 0)
    nodes.note_status(endpoint(nodes, A), status(urls={"b": B}), 0)
    assert [e.url for e in nodes.endpoints] == [A, B]


def test_an_older_term_does_not_tell_the_leader() -> None:
    nodes = NodeSet((A, B, C))
    nodes.note_status(endpoint(nodes, A), status("a", term=5, leader_url=B), 0)
    nodes.note_status(endpoint(nodes, C), status("c", term=4, leader_url=C), 0)
    assert nodes.leader_url == B
