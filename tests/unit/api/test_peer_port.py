from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from distsync_node.api.app import build_peer_app
from distsync_node.api.gateway import Gateway
from distsync_node.errors import AlreadyBootstrapped, ClusterMismatch, NoLeader, StartupError
from distsync_node.locks.commands import Release
from distsync_node.raft.types import MemberId
from unit.api.driver import Exchange
from unit.api.local_node import LEADER_URL, LocalNode

SECRET = "a shared secret"
MEMBER = {
    "id": "id-node-4",
    "name": "node-4",
    "peer_url": "http://10.0.0.14:8180",
    "client_url": "http://10.0.0.14:8080",
}
CALLS = [
    ("GET", "/healthz"),
    ("GET", "/cluster/identity"),
    ("GET", "/openapi.json"),
    ("POST", "/cluster/bootstrap"),
    ("POST", "/cluster/members"),
    ("DELETE", "/cluster/members/x"),
    ("POST", "/cluster/members/x/promote"),
    ("POST", "/cluster/members/x/demote"),
    ("POST", "/cluster/transfer"),
    ("POST", "/cluster/drain"),
    ("POST", "/cluster/archive"),
    ("POST", "/lock/force_release"),
    ("POST", "/lock/raise_tokens"),
    ("GET", "/no/such/path"),
    ("POST", "/raft/messages"),
]


# --- The secret --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer a shared secre",
        "Bearer a shared secret2",
        "Basic a shared secret",
        "a shared secret",
    ],
)
async def test_every_call_needs_the_secret(
    node: LocalNode, method: str, path: str, authorization: str | None
) -> None:
    reached: list[str] = []

    async def handler(scope: Any, _receive: Any, _send: Any) -> None:
        reached.append(scope["path"])

    app = build_peer_app(node, SECRET, {"/raft/messages": handler}, node_name="node-1")
    headers = {} if authorization is None else {"authorization": authorization}
    exchange = Exchange(app, method, path, headers=headers)
    await exchange.done()
    assert exchange.status == 401
    assert exchange.headers["www-authenticate"] == "Bearer"
    assert exchange.headers["content-type"] == "application/problem+json"
    assert exchange.json()["code"] == "unauthorized"
    assert reached == []


async def test_scheme_is_not_case_sensitive(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/healthz", headers={"authorization": f"bearer {SECRET}"})
    assert answer.status_code == 200


def test_empty_secret_is_a_startup_error(node: LocalNode) -> None:
    with pytest.raises(StartupError):
        build_peer_app(node, "", {}, node_name="node-1")


# --- Handlers of other nodes' calls ------------------------------------------------------------


async def test_peer_handlers_answer_all_by_themselves(node: LocalNode) -> None:
    async def handler(_scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 202, "headers": []})
        await send({"type": "http.response.body", "body": body[::-1]})

    app = build_peer_app(node, SECRET, {"/raft/messages": handler}, node_name="node-1")
    exchange = Exchange(
        app, "POST", "/raft/messages", headers={"authorization": f"Bearer {SECRET}"}
    )
    exchange.feed(b"abc")
    await exchange.done()
    assert (exchange.status, exchange.body, exchange.headers) == (202, b"cba", {})


async def test_failing_peer_handler_is_500(
    node: LocalNode, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(_scope: Any, _receive: Any, _send: Any) -> None:
        raise ValueError("bad")

    app = build_peer_app(node, SECRET, {"/raft/messages": handler}, node_name="node-1")
    exchange = Exchange(
        app, "POST", "/raft/messages", headers={"authorization": f"Bearer {SECRET}"}
    )
    await exchange.done()
    assert exchange.status == 500
    assert caplog.records[-1].exc_info


# --- Membership --------------------------------------------------------------------------------


async def test_identity_says_who_listens(admin: httpx.AsyncClient) -> None:
    identity = (await admin.get("/cluster/identity")).json()
    members = identity.pop("members")
    assert identity == {
        "member_id": "id-node-1",
        "name": "node-1",
        "state": "member",
        "cluster_id": "c-1",
        "config_index": 7,
        "draining": False,
        "leader": "node-1",
        "peer_url": "http://node-1.test:8180",
        "client_url": "http://node-1.test:8080",
    }
    assert [member["id"] for member in members] == ["id-node-1", "id-node-2", "id-node-3"]


async def test_a_node_that_reads_its_disk_does_not_pass_for_an_empty_one(
    admin: httpx.AsyncClient, node: LocalNode
) -> None:
    node.changes = {"member_id": MemberId(""), "state": "uninitialised", "cluster_id": None}
    answer = await admin.get("/cluster/identity")
    assert answer.status_code == 503
    assert answer.json()["code"] == "unavailable"


async def test_bootstrap_hands_the_members_on(admin: httpx.AsyncClient, node: LocalNode) -> None:
    answer = await admin.post("/cluster/bootstrap", json={"cluster_id": "c-9", "members": [MEMBER]})
    assert answer.status_code == 200
    assert [member.name for member in node.members] == ["node-4"]
    assert answer.json()["members"] == [MEMBER]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AlreadyBootstrapped("another cluster"), "already_bootstrapped"),
        (ClusterMismatch("not you"), "cluster_mismatch"),
    ],
)
async def test_bootstrap_refused_is_409(
    admin: httpx.AsyncClient, node: LocalNode, error: Exception, code: str
) -> None:
    node.error = error
    answer = await admin.post("/cluster/bootstrap", json={"cluster_id": "c-9", "members": [MEMBER]})
    assert (answer.status_code, answer.json()["code"]) == (409, code)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"id": ""}, "members[0].id"),
        ({"id": "a\nb"}, "members[0].id"),
        ({"name": "a\0"}, "members[0].name"),
        ({"peer_url": "node-4:8180"}, "members[0].peer_url"),
        ({"peer_url": "http://"}, "members[0].peer_url"),
        ({"peer_url": "http://a\r\nx"}, "members[0].peer_url"),
        ({"peer_url": "http://a:port"}, "members[0].peer_url"),
        ({"peer_url": "http://a:65536"}, "members[0].peer_url"),
        ({"peer_url": "http://a..b"}, "members[0].peer_url"),
        ({"peer_url": "https://a"}, "members[0].peer_url"),
        ({"peer_url": "http://a/path"}, "members[0].peer_url"),
        ({"peer_url": "http://[1::2::3]"}, "members[0].peer_url"),
        ({"peer_url": "http://[::1"}, "members[0].peer_url"),
        ({"client_url": "ftp://a"}, "members[0].client_url"),
        ({"extra": 1}, "members[0].extra"),
    ],
)
async def test_wrong_members_are_refused(
    admin: httpx.AsyncClient, node: LocalNode, change: dict[str, Any], field: str
) -> None:
    before = node.members
    answer = await admin.post(
        "/cluster/bootstrap", json={"cluster_id": "c-9", "members": [{**MEMBER, **change}]}
    )
    assert answer.status_code == 422, answer.text
    assert answer.json()["field"] == field
    assert node.members == before


@pytest.mark.parametrize("same", ["id", "name", "peer_url"])
async def test_members_must_differ(admin: httpx.AsyncClient, same: str) -> None:
    other = {"id": "o", "name": "o", "peer_url": "http://o:1", same: MEMBER[same]}
    answer = await admin.post(
        "/cluster/bootstrap", json={"cluster_id": "c-9", "members": [MEMBER, other]}
    )
    assert (answer.status_code, answer.json()["field"]) == (422, "members")


async def test_member_life(admin: httpx.AsyncClient) -> None:
    added = await admin.post("/cluster/members", json={**MEMBER, "expected_config_index": 7})
    assert added.status_code == 200
    assert added.json()["config_index"] == 8
    assert added.json()["members"][-1]["role"] == "learner"
    promoted = await admin.post(
        "/cluster/members/id-node-4/promote", json={"expected_config_index": 8}
    )
    assert promoted.json()["members"][-1]["voter"] is True
    demoted = await admin.post("/cluster/members/id-node-4/demote")
    assert demoted.json()["members"][-1]["voter"] is False
    removed = await admin.delete("/cluster/members/id-node-4?expected_config_index=10")
    assert removed.status_code == 200
    assert len(removed.json()["members"]) == 3
    assert removed.json()["config_index"] == 11


async def test_unexpected_config_index_is_409(admin: httpx.AsyncClient, node: LocalNode) -> None:
    body = {"expected_config_index": 6}
    for request in (
        admin.post("/cluster/members", json={**MEMBER, **body}),
        admin.post("/cluster/members/id-node-2/promote", json=body),
        admin.post("/cluster/members/id-node-2/demote", json=body),
        admin.delete("/cluster/members/id-node-2?expected_config_index=6"),
    ):
        answer = await request
        assert (answer.status_code, answer.json()["code"]) == (409, "config_conflict")
    assert node.config_index == 7


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("expected_config_index=x", "expected_config_index"),
        ("expected_config_index=-1", "expected_config_index"),
        ("expected_config_index=", "expected_config_index"),
        ("expected_config_index=1&expected_config_index=2", "expected_config_index"),
        ("expected_config_index=" + "9" * 30, "expected_config_index"),
        ("expected=7", "query"),
    ],
)
async def test_wrong_config_index_is_refused(
    admin: httpx.AsyncClient, node: LocalNode, query: str, field: str
) -> None:
    answer = await admin.delete(f"/cluster/members/id-node-2?{query}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert node.config_index == 7


async def test_member_id_is_one_percent_encoded_segment(
    admin: httpx.AsyncClient, node: LocalNode
) -> None:
    answer = await admin.delete("/cluster/members/id%2Dnode%2D2")
    assert answer.status_code == 200
    assert [member.name for member in node.members] == ["node-1", "node-3"]
    assert (await admin.delete("/cluster/members/a/b")).status_code == 404


async def test_transfer_tells_the_new_leader(admin: httpx.AsyncClient) -> None:
    anyone = await admin.post("/cluster/transfer")
    assert anyone.json() == {"leader": "node-2", "member_id": "id-node-2"}
    someone = await admin.post("/cluster/transfer", json={"target": "id-node-3"})
    assert someone.json() == {"leader": "node-3", "member_id": "id-node-3"}


async def test_only_a_removed_member_is_archived(admin: httpx.AsyncClient, node: LocalNode) -> None:
    refused = await admin.post("/cluster/archive")
    assert (refused.status_code, refused.json()["code"]) == (409, "config_conflict")
    node.changes = {"state": "removed"}
    archived = await admin.post("/cluster/archive")
    assert archived.json() == {"archived_to": "/data/removed-1"}


async def test_a_node_that_drains_says_so(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/cluster/identity")).json()["draining"] is False
    assert (await admin.post("/cluster/drain")).json()["draining"] is True
    assert (await admin.get("/cluster/identity")).json()["draining"] is True


async def test_admin_calls_without_a_leader_are_503(
    admin: httpx.AsyncClient, node: LocalNode
) -> None:
    node.error = NoLeader("none")
    answer = await admin.post("/cluster/transfer")
    assert (answer.status_code, answer.json()["code"]) == (503, "no_leader")
    assert answer.json()["leader"] == LEADER_URL


# --- Forced release ----------------------------------------------------------------------------


async def test_forced_release_ends_every_grant(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, node: LocalNode
) -> None:
    for owner in ("a", "b"):
        await client.post("/lock/acquire", json={"name": "x", "owner": owner, "mode": "shared"})
    answer = await admin.post("/lock/force_release", json={"name": "x"})
    assert (answer.status_code, answer.json()) == (200, {"released": True})
    assert (await client.get("/lock/x")).json()["holders"] == []
    command = node.submitted[-1]
    assert isinstance(command, Release)
    assert command.force is True


async def test_forced_release_of_one_grant(
    admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    for owner in ("a", "b"):
        await client.post("/lock/acquire", json={"name": "x", "owner": owner, "mode": "shared"})
    await admin.post("/lock/force_release", json={"name": "x", "owner": "a", "token": 1})
    holders = (await client.get("/lock/x")).json()["holders"]
    assert [holder["owner"] for holder in holders] == ["b"]


async def test_forced_release_of_nothing_is_409(admin: httpx.AsyncClient) -> None:
    answer = await admin.post("/lock/force_release", json={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "not_holder")


async def test_forced_release_of_an_owner_needs_the_token(
    admin: httpx.AsyncClient, node: LocalNode
) -> None:
    answer = await admin.post("/lock/force_release", json={"name": "x", "owner": "a"})
    assert (answer.status_code, answer.json()["field"]) == (422, "token")
    assert node.submitted == []


async def test_tokens_are_raised_once_and_never_lowered(
    admin: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    for above in (2**40, 2**40, 7):
        answer = await admin.post("/lock/raise_tokens", json={"above": above})
        assert (answer.status_code, answer.json()) == (200, {"above": above})
    granted = await client.post("/lock/acquire", json={"name": "x", "owner": "a"})
    assert granted.json()["token"] == 2**40 + 1
    refused = await admin.post("/lock/raise_tokens", json={"above": 2**52 + 1})
    assert (refused.status_code, refused.json()["field"]) == (422, "above")


async def test_admin_calls_leave_a_line_that_says_who_did_what(
    admin: httpx.AsyncClient, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    await client.post("/lock/acquire", json={"name": "x", "owner": "a"})
    headers = {"distsync-client": "alice"}
    for _ in range(2):
        await admin.post("/lock/force_release", json={"name": "x"}, headers=headers)
    await admin.delete("/cluster/members/id-node-2")
    lines = [record for record in caplog.records if record.name == "distsync.admin"]
    assert all(line.levelno == logging.WARNING for line in lines)
    fields = [line.fields for line in lines]  # type: ignore[attr-defined]
    assert fields[0] == {
        "action": "force_release",
        "lock": "x",
        "owner": "",
        "token": 0,
        "from": "127.0.0.1",
        "client": "alice",
        "result": "done",
    }
    assert fields[1]["result"] == "not_holder"
    assert fields[2]["action"] == "remove_member"
    assert fields[2]["member"] == "id-node-2"


async def test_public_calls_are_not_on_the_peer_port(peer_app: Gateway) -> None:
    exchange = Exchange(
        peer_app, "POST", "/lock/acquire", headers={"authorization": f"Bearer {SECRET}"}
    )
    await exchange.done()
    assert exchange.status == 404
