from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from distsync_node import logs
from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.metrics import BUCKETS_S, RouteMetrics
from distsync_node.api.options import ApiOptions
from distsync_node.errors import NoLeader
from unit.api.driver import post
from unit.api.local_node import LocalNode
from waiting_for import eventually

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


async def samples(client: httpx.AsyncClient) -> Samples:
    text = (await client.get("/metrics")).text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def labelled(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


# --- Metrics -----------------------------------------------------------------------------------


async def test_requests_are_counted_by_route_and_status(client: httpx.AsyncClient) -> None:
    for owner in ("a", "b", "c"):
        await client.post("/lock/acquire", json={"name": "x", "owner": owner})
    await client.get("/lock/orders%2F42")
    await client.get("/v1/lock/other")
    await client.get("/nothing")
    found = await samples(client)
    name = "distsync_http_requests_total"
    assert found[labelled(name, method="POST", route="/lock/acquire", status="200")] == 1
    assert found[labelled(name, method="POST", route="/lock/acquire", status="409")] == 2
    assert found[labelled(name, method="GET", route="/lock/{name}", status="200")] == 2
    assert found[labelled(name, method="*", route="unmatched", status="404")] == 1


async def test_latency_histogram_counts_every_answer(client: httpx.AsyncClient) -> None:
    for _ in range(3):
        await client.get("/healthz")
    found = await samples(client)
    name = "distsync_http_request_duration_seconds"
    labels = {"method": "GET", "route": "/healthz"}
    assert found[labelled(f"{name}_count", **labels)] == 3
    assert found[labelled(f"{name}_bucket", le="+Inf", **labels)] == 3
    assert found[labelled(f"{name}_sum", **labels)] > 0
    counts = [found[labelled(f"{name}_bucket", le=str(le), **labels)] for le in BUCKETS_S]
    assert counts == sorted(counts)


async def test_client_that_left_is_counted_as_499(
    client: httpx.AsyncClient, app: Gateway, node: LocalNode
) -> None:
    await client.post("/lock/acquire", json={"name": "x", "owner": "a"})
    waiter = post(app, "/lock/acquire", b'{"name":"x","owner":"b","wait_ms":60000}')
    await eventually(lambda: node.waiting_count() == 1)
    assert (await samples(client))[labelled("distsync_http_requests_in_flight")] == 2
    waiter.disconnect()
    await waiter.done()
    found = await samples(client)
    name = "distsync_http_requests_total"
    assert found[labelled(name, method="POST", route="/lock/acquire", status="499")] == 1
    assert found[labelled("distsync_http_requests_in_flight")] == 1


async def test_node_state_is_exposed(
    client: httpx.AsyncClient, app: Gateway, node: LocalNode
) -> None:
    await client.post("/lock/acquire", json={"name": "x", "owner": "a"})
    await client.post("/session")
    waiter = post(app, "/lock/acquire", b'{"name":"x","owner":"b","wait_ms":60000}')
    await eventually(lambda: node.waiting_count() == 1)
    node.changes = {"disk_full": True}
    found = await samples(client)
    expected = {
        labelled("distsync_raft_role", role="leader"): 1,
        labelled("distsync_raft_role", role="follower"): 0,
        labelled("distsync_raft_term"): 3,
        labelled("distsync_raft_commit_index"): 1_204,
        labelled("distsync_raft_applied_index"): 1_203,
        labelled("distsync_raft_config_index"): 7,
        labelled("distsync_raft_has_leader"): 1,
        labelled("distsync_raft_leader_changes_total"): 2,
        labelled("distsync_raft_members", kind="voter"): 2,
        labelled("distsync_raft_members", kind="learner"): 1,
        labelled("distsync_raft_match_index", member="node-2"): 1_200,
        labelled("distsync_raft_last_contact_seconds", member="node-2"): 0.012,
        labelled("distsync_locks_held"): 1,
        labelled("distsync_lock_grants"): 1,
        labelled("distsync_lock_waiters"): 1,
        labelled("distsync_sessions"): 1,
        labelled("distsync_ready"): 1,
        labelled("distsync_disk_full"): 1,
    }
    assert {key: found[key] for key in expected} == expected
    assert any(name == "process_resident_memory_bytes" for name, _ in found)
    waiter.disconnect()
    await waiter.done()


async def test_openmetrics_is_served_when_asked_for(client: httpx.AsyncClient) -> None:
    await client.get("/healthz")
    answer = await client.get(
        "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


async def test_two_nodes_of_one_process_do_not_share_metrics(client: httpx.AsyncClient) -> None:
    await client.get("/healthz")
    other = build_public_app(LocalNode(), node_name="node-2")
    transport = httpx.ASGITransport(other)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as second:
        assert not any("/healthz" in str(labels) for _, labels in await samples(second))


def test_observation_falls_into_the_bucket_of_its_upper_bound() -> None:
    route = RouteMetrics("GET", "/x")
    for seconds in (0.0, BUCKETS_S[0], BUCKETS_S[-1], BUCKETS_S[-1] * 2):
        route.observe(200, seconds)
    counts = dict(route.cumulative())
    assert counts[str(BUCKETS_S[0])] == 2
    assert counts[str(BUCKETS_S[-1])] == 3
    assert counts["+Inf"] == 4


# --- Logs --------------------------------------------------------------------------------------


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure_logging(node="node-1", stream=stream)
    yield stream
    root.handlers[:], root.level = before


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_problem_of_the_server_is_one_json_line_with_its_request_id(
    stream: io.StringIO, client: httpx.AsyncClient, node: LocalNode
) -> None:
    node.error = NoLeader("no leader answered in time")
    answer = await client.post(
        "/lock/acquire",
        json={"name": "x", "owner": "a", "request_id": "r-1"},
        headers={"x-request-id": "trace-1"},
    )
    assert answer.status_code == 503
    (line,) = [line for line in lines(stream) if line["logger"] == "distsync.api"]
    assert line["request_id"] == "trace-1"
    assert line["command_request_id"] == "r-1"
    assert (line["code"], line["status"]) == ("no_leader", 503)
    assert (line["method"], line["path"]) == ("POST", "/lock/acquire")
    assert (line["level"], line["node"]) == ("warning", "node-1")
    assert str(line["time"]).endswith("+00:00")


async def test_refusals_leave_no_line(stream: io.StringIO, client: httpx.AsyncClient) -> None:
    for owner in ("a", "b"):
        await client.post("/lock/acquire", json={"name": "x", "owner": owner})
    await client.post("/lock/acquire", json={})
    assert not [line for line in lines(stream) if str(line["logger"]).startswith("distsync")]


async def test_an_outage_does_not_flood_the_log(stream: io.StringIO, node: LocalNode) -> None:
    app = build_public_app(node, node_name="node-1", options=ApiOptions(max_problem_logs_per_s=3))
    node.error = NoLeader("none")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
        for _ in range(50):
            assert (await client.get("/lock/x")).status_code == 503
    written = [line for line in lines(stream) if line["logger"] == "distsync.api"]
    assert 3 <= len(written) <= 12  # 3 a second; the requests may cross a few seconds


async def test_access_log_is_off_unless_asked_for(
    stream: io.StringIO, client: httpx.AsyncClient, node: LocalNode
) -> None:
    await client.get("/healthz")
    assert not [line for line in lines(stream) if line["logger"] == "distsync.access"]
    app = build_public_app(node, node_name="node-1", options=ApiOptions(access_log=True))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as talkative:
        await talkative.get("/lock/x", headers={"x-request-id": "trace-2"})
    (line,) = [line for line in lines(stream) if line["logger"] == "distsync.access"]
    assert (line["method"], line["path"], line["status"]) == ("GET", "/lock/x", 200)
    assert line["request_id"] == "trace-2"


def test_exceptions_and_odd_values_fit_in_one_line(stream: io.StringIO) -> None:
    logger = logging.getLogger("anything")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("failed: %s", "x\ny", extra={"fields": {"path": object}})
    (line,) = lines(stream)
    assert line["message"] == "failed: x\ny"
    assert "ValueError: two\nlines" in str(line["exception"])
