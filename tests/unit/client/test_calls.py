"""Which node is asked, what is repeated, and what a call without an answer ends with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from distsync import (
    AsyncClient,
    BadRequest,
    ClientClosed,
    DiskFull,
    LimitReached,
    LockHeld,
    OutcomeUnknown,
    ServerError,
    Unavailable,
)
from distsync.connections import Answer, Connections, NotDone
from distsync.nodes import Endpoint
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster, problem
from waiting_for import eventually

MakeClient = Callable[..., AsyncClient]
ACQUIRE = "/lock/acquire"


async def leader_known(client: AsyncClient, cluster: ScriptedCluster) -> None:
    """Let the client find out who leads, and forget the requests it took."""
    await client.lock_info("warm-up")
    nodes = client._core.transport.nodes
    await eventually(lambda: nodes.leader_is_reachable and not nodes.unproven(0))
    await asyncio.sleep(0)
    cluster.asked.clear()


async def test_lost_acquire_reply_is_retried_under_the_same_request_id(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, drop="after")
    async with client.lock("a") as lock:
        asked = cluster.asked_for(ACQUIRE)
        assert len(asked) >= 2
        assert len({a.body["request_id"] for a in asked}) == 1
        assert len({a.client for a in asked}) == 1
        assert all(a.body == asked[0].body for a in asked)
        info = await client.lock_info("a")
        assert [holder.token for holder in info.holders] == [lock.token]


async def test_each_call_has_a_request_id_of_its_own(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    for _ in range(2):
        async with client.lock("a"):
            pass
    ids = [a.body["request_id"] for a in cluster.asked if "request_id" in a.body]
    assert len(ids) == len(set(ids)) == 4


async def test_a_call_that_was_never_done_ends_unavailable(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client = make_client(timeout=0.3)
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, 1000, answer=problem(503, "no_leader"))
    with pytest.raises(Unavailable) as caught:
        await client.lock("a").acquire()
    assert not isinstance(caught.value, OutcomeUnknown)
    assert len(cluster.asked_for(ACQUIRE)) > 2


async def test_unknown_is_never_reported_as_failure(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    """The first attempt may have been done, so refusals to do another one do not settle it."""
    client = make_client(timeout=0.3)
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, 1, answer=problem(504, "outcome_unknown"))
        node.fault(ACQUIRE, 1000, answer=problem(503, "no_leader"))
    with pytest.raises(OutcomeUnknown):
        await client.lock("a").acquire()


@pytest.mark.parametrize("code", ["limit_reached", "disk_full"])
async def test_a_refusal_after_a_doubtful_attempt_does_not_settle_it(
    cluster: ScriptedCluster, make_client: MakeClient, code: str
) -> None:
    client = make_client(timeout=0.3)
    status = {"limit_reached": 429, "disk_full": 507}[code]
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, 1, drop="before")
        node.fault(ACQUIRE, 1000, answer=problem(status, code))
    with pytest.raises(OutcomeUnknown):
        await client.lock("a").acquire()


async def test_refusals_without_doubt_are_passed_on_at_once(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client = make_client([cluster.nodes["node-1"].url])
    node = cluster.nodes["node-1"]
    node.fault(ACQUIRE, answer=problem(429, "limit_reached", limit="waiters"))
    with pytest.raises(LimitReached) as limit:
        await client.lock("a").acquire()
    assert limit.value.limit == "waiters"
    node.fault(ACQUIRE, answer=problem(507, "disk_full"))
    with pytest.raises(DiskFull):
        await client.lock("a").acquire()
    node.fault(ACQUIRE, answer=problem(500, "internal", retriable=False))
    with pytest.raises(ServerError):
        await client.lock("a").acquire()
    assert len(cluster.asked_for(ACQUIRE)) == 3


async def test_a_proxys_503_may_hide_a_done_request(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    client = make_client(timeout=0.2)
    for node in cluster.nodes.values():
        node.fault(ACQUIRE, 1000, answer=lambda: web.Response(status=503, text="upstream reset"))
    with pytest.raises(OutcomeUnknown):
        await client.lock("a").acquire()


async def test_nothing_listening_ends_unavailable(make_client: MakeClient) -> None:
    client = make_client("http://127.0.0.1:9", timeout=0.2)
    with pytest.raises(Unavailable):
        await client.lock("a").acquire()
    with pytest.raises(Unavailable):
        await client.status()


async def test_the_leader_is_asked_directly_once_known(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    cluster.leader = "node-2"
    await leader_known(client, cluster)
    async with client.lock("a"):
        pass
    assert {a.node for a in cluster.asked} == {"node-2"}
    assert client.leader_url == cluster.nodes["node-2"].url


async def test_other_nodes_are_found_from_one_url(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    cluster.leader = "node-3"
    client = make_client(cluster.nodes["node-1"].url)
    await leader_known(client, cluster)
    await cluster.nodes["node-1"].stop()
    async with client.lock("a"):
        pass
    assert {a.node for a in cluster.asked_for(ACQUIRE)} == {"node-3"}


async def test_a_discovered_url_that_does_not_answer_is_never_used(
    cluster: ScriptedCluster, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a port-forward: the addresses that nodes tell of lead nowhere."""
    exchange = Connections.exchange
    tried: list[str] = []

    async def noted(
        connections: Connections, endpoint: Endpoint, method: str, path: str, *rest: Any
    ) -> Answer:
        if path == ACQUIRE:
            tried.append(endpoint.url)
        return await exchange(connections, endpoint, method, path, *rest)

    monkeypatch.setattr(Connections, "exchange", noted)
    for node in cluster.nodes.values():
        node.advertised_url = "http://127.0.0.1:9"
    cluster.nodes["node-1"].advertised_url = "http://10.255.255.1:8080"
    client = make_client(cluster.nodes["node-2"].url)
    for _ in range(3):
        async with client.lock("a"):
            pass
    assert tried == [cluster.nodes["node-2"].url] * 3


async def test_a_configured_url_at_which_the_leader_answers_is_preferred(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    """Port-forwards to all nodes: the leader's own URL leads nowhere, a forward leads to it."""
    for number, node in enumerate(cluster.nodes.values()):
        node.advertised_url = f"http://127.0.0.1:{number + 1}"
    cluster.leader = "node-3"
    client = make_client()
    await client.lock_info("a")
    nodes = client._core.transport.nodes
    await eventually(lambda: nodes.leader_is_reachable)
    cluster.asked.clear()
    async with client.lock("a"):
        pass
    assert {a.node for a in cluster.asked_for(ACQUIRE)} == {"node-3"}


async def test_a_discovered_url_of_another_cluster_is_never_used(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    stranger = ScriptedCluster()
    stranger.cluster_id = "another"
    await stranger.start(1)
    try:
        for node in cluster.nodes.values():
            node.advertised_url = stranger.nodes["node-1"].url
        client = make_client(cluster.nodes["node-2"].url)
        await client.lock_info("warm-up")
        await eventually(lambda: stranger.asked_for("/cluster/status"))
        async with client.lock("a"):
            pass
        assert not stranger.asked_for(ACQUIRE)
    finally:
        await stranger.stop()


async def test_a_dead_leader_is_left_for_another_node(
    cluster: ScriptedCluster, client: AsyncClient
) -> None:
    await leader_known(client, cluster)
    await cluster.nodes["node-1"].stop()
    async with asyncio.timeout(8), client.lock("a"):
        assert {a.node for a in cluster.asked_for(ACQUIRE)} <= {"node-2", "node-3"}


async def test_a_new_leader_is_followed(cluster: ScriptedCluster, client: AsyncClient) -> None:
    await leader_known(client, cluster)
    cluster.leader = "node-2"
    await client.lock_info("a")  # answered by the old one, which tells of the new one
    cluster.asked.clear()
    async with client.lock("a"):
        pass
    assert {a.node for a in cluster.asked} == {"node-2"}


async def test_a_hint_at_the_leader_is_followed(
    cluster: ScriptedCluster, make_client: MakeClient
) -> None:
    leader = cluster.nodes["node-3"]
    cluster.leader = "node-3"
    hint = problem(503, "no_leader", leader_url=leader.url)
    for name in ("node-1", "node-2"):
        cluster.nodes[name].fault(ACQUIRE, 1000, answer=hint)
    client = make_client()
    client._core.transport.nodes.choose(0)
    for _ in range(2):
        async with asyncio.timeout(8), client.lock("a"):
            pass
    asked = cluster.asked_for(ACQUIRE)
    assert [a.node for a in asked].count("node-3") == 2
    assert len(asked) <= 3  # one wrong guess at most, and then the leader


async def test_a_slow_answer_of_a_living_node_is_awaited(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    await leader_known(client, cluster)
    hold = asyncio.Event()
    cluster.nodes["node-1"].fault(ACQUIRE, hold=hold)
    acquiring = asyncio.create_task(client.lock("a", wait=0).acquire())
    await eventually(lambda: cluster.asked_for(ACQUIRE))
    for probes in (1, 2):
        clock.jump(2.1)
        await eventually(lambda n=probes: len(cluster.asked_for("/cluster/status", "node-1")) >= n)
    hold.set()
    await (await acquiring).release()
    assert len(cluster.asked_for(ACQUIRE)) == 1


async def test_a_silent_node_is_left_long_before_the_call_ends(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    await leader_known(client, cluster)
    silent = cluster.nodes["node-1"]
    silent.fall_silent()
    acquiring = asyncio.create_task(client.lock("a").acquire())
    lifelines = client._core.transport._lifelines
    await eventually(lambda: lifelines._lines)
    async with asyncio.timeout(8):  # a second until the probe, a second for it
        lock = await acquiring
    assert {a.node for a in cluster.asked_for(ACQUIRE)} <= {"node-2", "node-3"}
    await lock.release()


async def test_a_node_that_lost_its_cluster_is_left_while_waiting(
    cluster: ScriptedCluster, clock: JumpClock, make_client: MakeClient
) -> None:
    """It answers probes, but knows no leader: what waits there may wait in vain."""
    client = make_client()
    await leader_known(client, cluster)
    holder = await client.lock("a", owner="holder").acquire()
    waiting = asyncio.create_task(client.lock("a", owner="waiter").acquire())
    await eventually(lambda: len(cluster.asked_for(ACQUIRE, "node-1")) == 2)
    cluster.status_changes["node-1"] = {"leader": None}
    for _ in range(2):
        probes = len(cluster.asked_for("/cluster/status", "node-1"))
        assert len(cluster.asked_for(ACQUIRE)) == 2  # not for a moment without a leader
        clock.jump(2.1)
        await eventually(lambda p=probes: len(cluster.asked_for("/cluster/status", "node-1")) > p)
    await eventually(lambda: len(cluster.asked_for(ACQUIRE)) > 2)
    first, again = cluster.asked_for(ACQUIRE)[1:3]
    assert again.node != "node-1"
    assert again.body["request_id"] == first.body["request_id"]
    await holder.release()
    await (await waiting).release()


async def test_renewals_are_not_held_up_by_many_waiting_requests(
    cluster: ScriptedCluster, clock: JumpClock, client: AsyncClient
) -> None:
    holder = await client.lock("a", owner="holder").acquire()
    async with asyncio.TaskGroup() as group:
        for number in range(150):
            group.create_task(_acquire_and_release(client, f"waiter-{number}"))
        await eventually(lambda: cluster.table.waiting_count() == 150, within_seconds=20)
        clock.jump(4)
        await eventually(lambda: holder.expires_in() > 9)
        await holder.release()


async def _acquire_and_release(client: AsyncClient, owner: str) -> None:
    lock = await client.lock("a", owner=owner).acquire()
    await lock.release()


async def test_errors_carry_what_the_node_said(client: AsyncClient) -> None:
    with pytest.raises(BadRequest) as bad:
        await client.lock("a", ttl=0.01).acquire()
    assert bad.value.field == "ttl_ms"
    assert bad.value.status == 422
    async with client.lock("a", owner="one"):
        with pytest.raises(LockHeld) as held:
            await client.lock("a", owner="two", wait=0).acquire()
    assert held.value.code == "lock_held"
    assert held.value.request_id


async def test_names_are_one_segment_whatever_they_contain(client: AsyncClient) -> None:
    for name in ("orders/42", "..", ".", "a b%2Fc?d#e", "schloß", "/"):
        async with client.lock(name) as lock:
            info = await client.lock_info(name)
            assert (info.name, info.token) == (name, lock.token)


async def test_a_closed_client_says_so(cluster: ScriptedCluster, make_client: MakeClient) -> None:
    client = make_client()
    await client.lock_info("a")
    await client.close()
    await client.close()
    with pytest.raises(ClientClosed):
        await client.lock_info("a")


@pytest.mark.parametrize("urls", ["", " , ", "ftp://host", "http://", "http://host/?query", []])
def test_urls_that_are_none_are_refused(urls: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        AsyncClient(urls)


def test_urls_may_be_given_in_several_ways() -> None:
    from distsync.nodes import parse_urls

    assert parse_urls("a:1, http://b:2/,https://c/x/") == (
        "http://a:1",
        "http://b:2",
        "https://c/x",
    )
    assert parse_urls(["http://A:80", "http://a"]) == ("http://a",)


async def test_a_name_whose_lookup_hangs_is_said_to_do_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", hang)
    async with AsyncClient("http://node.example:1") as client:
        call = client._core.transport._connections.exchange(
            Endpoint(url="http://node.example:1", configured=True, usable=True),
            "POST",
            "/lock/acquire",
            b"{}",
            0.2,
        )
        with pytest.raises(NotDone, match="finding its name"):
            await call
