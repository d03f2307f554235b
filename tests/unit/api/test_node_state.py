"""What a node says of itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from distsync_node import __version__
from distsync_node.errors import NoLeader, Uninitialised
from unit.api.local_node import LEADER_URL, LocalNode


async def test_status_has_roles_indexes_and_members(client: httpx.AsyncClient) -> None:
    await client.post("/lock/acquire", json={"name": "x", "owner": "a"})
    await client.post("/session")
    status = (await client.get("/cluster/status")).json()
    members = status.pop("members")
    assert status == {
        "node": "node-1",
        "member_id": "id-node-1",
        "state": "member",
        "role": "leader",
        "leader": "node-1",
        "leader_url": LEADER_URL,
        "term": 3,
        "commit_index": 1_204,
        "applied_index": 1_203,
        "config_index": 7,
        "cluster_id": "c-1",
        "cluster_version": 1,
        "version": __version__,
        "ready": True,
        "serving": True,
        "ring_epoch": 2,
        "disk_full": False,
        "locks": 1,
        "waiters": 0,
        "sessions": 1,
    }
    assert [(member["name"], member["role"]) for member in members] == [
        ("node-1", "leader"),
        ("node-2", "follower"),
        ("node-3", "learner"),
    ]
    assert members[1]["match_index"] == 1_200
    assert members[1]["last_contact_ms"] == 12
    assert members[2]["match_index"] is None


async def test_status_says_whether_the_node_serves_its_part_of_which_ring(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    for serving in (True, False):
        node.changes = {"serving": serving, "ring_epoch": 5}
        status = (await client.get("/cluster/status")).json()
        assert (status["serving"], status["ring_epoch"]) == (serving, 5)


async def test_status_answers_without_a_leader(client: httpx.AsyncClient, node: LocalNode) -> None:
    node.leader = None
    node.error = NoLeader("none")
    status = (await client.get("/cluster/status")).json()
    assert status["leader"] is None


async def test_status_answers_while_the_disk_is_read(
    client: httpx.AsyncClient, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reading(_node: LocalNode) -> Any:
        raise Uninitialised("this node is still reading its data directory")

    monkeypatch.setattr(LocalNode, "machine", property(reading))
    status = await client.get("/cluster/status")
    assert status.status_code == 200
    assert status.json()["locks"] == 0
    assert (await client.get("/metrics")).status_code == 200


async def test_health_needs_no_cluster(client: httpx.AsyncClient, node: LocalNode) -> None:
    node.leader = None
    node.error = NoLeader("none")
    node.changes = {"state": "uninitialised"}
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_member_is_ready_also_when_it_lost_its_leader(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    for _ in range(2):
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        node.leader = None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"state": "uninitialised", "ready": False}, "uninitialised"),
        ({"state": "joining", "ready": False}, "uninitialised"),
        ({"state": "removed", "ready": False}, "member_removed"),
        ({"state": "stopped", "ready": False}, "shutting_down"),
        ({"leader": None, "ready": False}, "no_leader"),
        ({"draining": True, "ready": False}, "shutting_down"),
    ],
)
async def test_unready_says_why(
    client: httpx.AsyncClient, node: LocalNode, changes: dict[str, Any], code: str
) -> None:
    node.changes = changes
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["code"] == code
    assert answer.json()["detail"]


# --- The ring -----------------------------------------------------------------------------------


async def test_the_ring_shows_its_servers_and_their_shares(client: httpx.AsyncClient) -> None:
    ring = (await client.get("/cluster/ring")).json()
    assert (ring["epoch"], ring["virtual_nodes"]) == (2, 160)
    assert [server["name"] for server in ring["servers"]] == ["node-1", "node-2"]
    assert sum(server["share"] for server in ring["servers"]) == pytest.approx(1.0, abs=1e-5)
    assert (ring["key"], ring["owner"]) == (None, None)


async def test_the_ring_says_who_owns_a_key(client: httpx.AsyncClient, node: LocalNode) -> None:
    for key in ("emails", "orders/42", "ü {x}"):
        ring = (await client.get("/cluster/ring", params={"key": key})).json()
        owner = node.ring().owner(key)
        assert owner is not None
        assert (ring["key"], ring["owner"]) == (key, owner.name)


@pytest.mark.parametrize("query", ["keys=x", "key=a&key=b", "key=%ff"])
async def test_the_ring_refuses_a_wrong_query(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/cluster/ring?{query}")).status_code == 422
