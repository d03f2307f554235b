"""Bad input is answered with 4xx problem+json that names what is wrong, and changes nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.options import ApiOptions
from unit.api.driver import Exchange, post
from unit.api.local_node import LocalNode
from waiting_for import eventually

ACQUIRE: dict[str, Any] = {"name": "x", "owner": "a"}
HELD: dict[str, Any] = {"name": "x", "owner": "a", "token": 1}
BODIES: dict[str, dict[str, Any]] = {
    "/lock/acquire": ACQUIRE,
    "/lock/acquire_many": {"names": ["x"], "owner": "a"},
    "/lock/upgrade": HELD,
    "/lock/downgrade": HELD,
    "/lock/release": HELD,
    "/lock/renew": HELD,
    "/session": {},
    "/session/keepalive": {"session": "s"},
    "/session/close": {"session": "s"},
}


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert body["status"] == status
    assert body["type"] == f"urn:distsync:problem:{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"]
    assert isinstance(body["retriable"], bool)
    return body


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"name": "n" * 513}, "name"),
        ({"name": "é" * 257}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "a\x7f"}, "name"),
        ({"name": "a\x85"}, "name"),
        ({"owner": ""}, "owner"),
        ({"owner": "o" * 257}, "owner"),
        ({"owner": ["a"]}, "owner"),
        ({"mode": "write"}, "mode"),
        ({"ttl_ms": 99}, "ttl_ms"),
        ({"ttl_ms": 86_400_001}, "ttl_ms"),
        ({"ttl_ms": "10s"}, "ttl_ms"),
        ({"ttl_ms": 10.5}, "ttl_ms"),
        ({"ttl_ms": True}, "ttl_ms"),
        ({"ttl_ms": None}, "ttl_ms"),
        ({"wait_ms": -1}, "wait_ms"),
        ({"wait_ms": 600_001}, "wait_ms"),
        ({"limit": 0, "mode": "shared"}, "limit"),
        ({"limit": 1_000_001, "mode": "shared"}, "limit"),
        ({"limit": 2}, "limit"),
        ({"limit": 2, "mode": "exclusive"}, "limit"),
        ({"session": ""}, "session"),
        ({"session": "s" * 129}, "session"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "r" * 129}, "request_id"),
        ({"ttl": 10}, "ttl"),
        ({"ttl_ms": 10**30}, "ttl_ms"),
    ],
)
async def test_wrong_field_of_acquire_is_named(
    client: httpx.AsyncClient, node: LocalNode, change: dict[str, Any], field: str
) -> None:
    answer = await client.post("/lock/acquire", json={**ACQUIRE, **change})
    assert problem(answer, 422, "bad_request")["field"] == field
    assert node.submitted == []


@pytest.mark.parametrize("path", [path for path, body in BODIES.items() if body])
async def test_missing_fields_are_named(
    client: httpx.AsyncClient, node: LocalNode, path: str
) -> None:
    for missing in BODIES[path]:
        body = {name: value for name, value in BODIES[path].items() if name != missing}
        answer = await client.post(path, json=body)
        assert problem(answer, 422, "bad_request")["field"] == missing
    assert node.submitted == []


@pytest.mark.parametrize("path", BODIES)
async def test_unknown_fields_are_named(
    client: httpx.AsyncClient, node: LocalNode, path: str
) -> None:
    answer = await client.post(path, json={**BODIES[path], "surprise": 1})
    assert problem(answer, 422, "bad_request")["field"] == "surprise"
    assert node.submitted == []


@pytest.mark.parametrize("path", ["/lock/upgrade", "/lock/downgrade", "/lock/release"])
@pytest.mark.parametrize("token", [0, -1, 2**53, "1", 1.5])
async def test_wrong_tokens_are_refused(client: httpx.AsyncClient, path: str, token: Any) -> None:
    answer = await client.post(path, json={**HELD, "token": token})
    assert problem(answer, 422, "bad_request")["field"] == "token"


@pytest.mark.parametrize(
    ("names", "field"),
    [
        ([], "names"),
        (["a", "b", "a"], "names"),
        (["a", ""], "names[1]"),
        (["a", 1], "names[1]"),
        (["a", "b\0"], "names[1]"),
        ([f"n{number}" for number in range(65)], "names"),
        ("a", "names"),
    ],
)
async def test_wrong_names_of_acquire_many_are_refused(
    client: httpx.AsyncClient, node: LocalNode, names: Any, field: str
) -> None:
    answer = await client.post("/lock/acquire_many", json={"names": names, "owner": "a"})
    assert problem(answer, 422, "bad_request")["field"] == field
    assert node.submitted == []


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"name":',
        b"\xff\xfe",
        b'{"name":"\xff"}',
        b'{"name":"\\ud800"}',
        b"{} {}",
        b"[" * 100_000,
    ],
)
async def test_malformed_bodies_are_400(
    client: httpx.AsyncClient, node: LocalNode, path: str, body: bytes
) -> None:
    if path == "/session" and not body:
        return  # no body is a session with defaults
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    problem(answer, 400, "malformed_body")
    assert node.submitted == []


@pytest.mark.parametrize("body", [b"[]", b"1", b"null", b'"text"'])
async def test_a_body_that_is_no_object_is_refused(
    client: httpx.AsyncClient, node: LocalNode, body: bytes
) -> None:
    answer = await client.post(
        "/lock/acquire", content=body, headers={"content-type": "application/json"}
    )
    assert problem(answer, 422, "bad_request")["field"] == "body"


@pytest.mark.parametrize(
    "media_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/json; charset=latin-1",
        "application/problem+json",
    ],
)
async def test_other_content_types_are_415(
    client: httpx.AsyncClient, node: LocalNode, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    answer = await client.post("/lock/acquire", content=b"{}", headers=headers)
    problem(answer, 415, "unsupported_media_type")
    assert node.submitted == []


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        "application/json ; charset=utf8",
    ],
)
async def test_ways_to_say_json(client: httpx.AsyncClient, media_type: str) -> None:
    answer = await client.post(
        "/lock/acquire",
        content=b'{"name":"x","owner":"a"}',
        headers={"content-type": media_type},
    )
    assert answer.status_code == 200


async def test_name_of_512_bytes_is_accepted(client: httpx.AsyncClient) -> None:
    for name in ("n" * 512, "é" * 256):
        answer = await client.post("/lock/acquire", json={"name": name, "owner": "a"})
        assert answer.status_code == 200
        read = await client.get(f"/lock/{name}")
        assert read.json()["name"] == name
        assert len(read.json()["holders"]) == 1


async def test_unknown_paths_are_404(client: httpx.AsyncClient) -> None:
    for path in ("/", "/lock", "/lock/", "/v1", "/v1/", "/nothing", "/lock/a/b", "//locks"):
        problem(await client.get(path), 404, "not_found")
    assert "%2F" in (await client.get("/lock/a/b")).json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", "/lock/acquire", "GET, HEAD, POST"),
        ("PUT", "/lock/x", "GET, HEAD"),
        ("GET", "/session", "POST"),
        ("POST", "/locks", "GET, HEAD"),
        ("POST", "/lock/x/watch", "GET"),
        ("HEAD", "/lock/x/watch", "GET"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/metrics", "GET"),
        ("OPTIONS", "/cluster/status", "GET, HEAD"),
        ("POST", "/v1/locks", "GET, HEAD"),
    ],
)
async def test_wrong_methods_are_405_with_allow(
    client: httpx.AsyncClient, method: str, path: str, allow: str
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allow


async def test_head_answers_like_get_without_a_body(client: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz", "/cluster/status", "/locks", "/lock/x"):
        answer = await client.head(path)
        assert answer.status_code == 200
        assert answer.content == b""
        assert int(answer.headers["content-length"]) == len((await client.get(path)).content)


async def test_a_lock_may_be_named_like_a_call(client: httpx.AsyncClient) -> None:
    await client.post("/lock/acquire", json={"name": "acquire", "owner": "a"})
    read = await client.get("/lock/acquire")
    assert read.json()["holders"][0]["owner"] == "a"
    watch = await client.get("/lock/watch")
    assert watch.json()["holders"] == []


@pytest.mark.parametrize("segment", ["%zz", "%", "a%2", "%ff", "%C3", "a%00b", "%0A"])
async def test_badly_encoded_names_are_refused(app: Gateway, segment: str) -> None:
    exchange = Exchange(app, "GET", f"/lock/{segment}")
    exchange.feed(b"")
    await exchange.done()
    assert exchange.status == 422
    assert exchange.json()["field"] == "name"


async def test_plus_and_encoded_percent_in_a_path_are_literal(client: httpx.AsyncClient) -> None:
    assert (await client.get("/lock/a+b")).json()["name"] == "a+b"
    assert (await client.get("/lock/a%2525b")).json()["name"] == "a%25b"


# --- Limits ------------------------------------------------------------------------------------


async def test_announced_large_body_is_413_before_it_is_read(app: Gateway) -> None:
    exchange = Exchange(
        app,
        "POST",
        "/lock/acquire",
        headers={"content-type": "application/json", "content-length": str(300 * 1024)},
    )
    await exchange.until(lambda one: one.status == 413 and one.body)
    assert exchange.json()["code"] == "payload_too_large"
    assert exchange.headers["connection"] == "close"
    assert not exchange.is_complete  # the connection is closed once the rest is read away
    exchange.feed(b" " * 300 * 1024)
    await exchange.done()
    assert exchange.is_complete


async def test_chunked_body_is_413_as_soon_as_it_is_too_large(
    app: Gateway, node: LocalNode
) -> None:
    exchange = Exchange(
        app,
        "POST",
        "/lock/acquire",
        headers={"content-type": "application/json", "transfer-encoding": "chunked"},
    )
    for _ in range(5):
        exchange.feed(b" " * 64 * 1024, more=True)
    await exchange.until(lambda one: one.status == 413 and one.body)
    exchange.disconnect()
    await exchange.done()
    assert node.submitted == []


async def test_absurd_content_lengths_are_refused(app: Gateway) -> None:
    for length, status in (("9" * 5_000, 413), ("-1", 400), ("ten", 400)):
        exchange = Exchange(
            app,
            "POST",
            "/lock/acquire",
            headers={"content-type": "application/json", "content-length": length},
        )
        await exchange.until(lambda one, status=status: one.status == status and one.body)
        exchange.disconnect()
        await exchange.done()


async def test_body_that_does_not_arrive_is_408(app: Gateway, node: LocalNode) -> None:
    exchange = Exchange(
        app,
        "POST",
        "/lock/acquire",
        headers={"content-type": "application/json", "content-length": "30"},
    )
    exchange.feed(b'{"name":', more=True)
    await exchange.done()
    assert exchange.status == 408
    assert exchange.json()["code"] == "request_timeout"
    assert exchange.json()["retriable"] is True
    assert exchange.headers["connection"] == "close"
    assert node.submitted == []


async def test_body_in_pieces_is_put_together(app: Gateway) -> None:
    exchange = Exchange(app, "POST", "/lock/acquire", headers={"content-type": "application/json"})
    for piece in (b'{"name":"x"', b',"owner"', b':"a"}'):
        exchange.feed(piece, more=True)
    exchange.feed(b"")
    await exchange.done()
    assert exchange.status == 200


async def test_client_that_leaves_while_sending_is_answered_nothing(
    app: Gateway, node: LocalNode
) -> None:
    for pieces in ((), (b'{"na',)):
        exchange = Exchange(
            app, "POST", "/lock/acquire", headers={"content-type": "application/json"}
        )
        for piece in pieces:
            exchange.feed(piece, more=True)
        exchange.disconnect()
        await exchange.done()
        assert exchange.status is None
    assert node.submitted == []


async def test_too_many_headers_are_431(client: httpx.AsyncClient) -> None:
    many = {f"x-{number}": "1" for number in range(200)}
    problem(await client.get("/healthz", headers=many), 431, "headers_too_large")
    problem(await client.get("/healthz", headers={"x": "y" * 40_000}), 431, "headers_too_large")


async def test_too_long_paths_are_414(client: httpx.AsyncClient) -> None:
    problem(await client.get("/lock/" + "a" * 40_000), 414, "path_too_long")
    problem(await client.get("/locks", params={"prefix": "a" * 40_000}), 414, "path_too_long")


async def test_longer_name_in_a_path_is_422(client: httpx.AsyncClient) -> None:
    assert problem(await client.get("/lock/" + "a" * 513), 422, "bad_request")["field"] == "name"


@pytest.mark.parametrize("client_id", ["c" * 129, "tab\there"])
async def test_wrong_client_ids_are_refused(client: httpx.AsyncClient, client_id: str) -> None:
    answer = await client.post(
        "/lock/acquire", json=ACQUIRE, headers={"distsync-client": client_id}
    )
    assert problem(answer, 422, "bad_request")["field"] == "Distsync-Client"


async def test_too_many_requests_at_once_are_429_but_what_ends_them_is_answered(
    node: LocalNode,
) -> None:
    app = build_public_app(node, node_name="node-1", options=ApiOptions(max_concurrent_requests=1))
    await post(app, "/lock/acquire", b'{"name":"x","owner":"a"}').done()
    waiting = post(app, "/lock/acquire", b'{"name":"x","owner":"b","wait_ms":60000}')
    await eventually(lambda: node.waiting_count() == 1)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
        body = problem(await client.get("/locks"), 429, "limit_reached")
        assert body["limit"] == "requests"
        assert body["retriable"] is True
        refused = await client.get("/cluster/status")
        assert refused.headers["retry-after"] == "1"
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        held = {"name": "x", "owner": "a", "token": 1}
        assert (await client.post("/lock/acquire", json=ACQUIRE)).status_code == 429
        assert (await client.post("/lock/renew", json={**held, "ttl_ms": 1_000})).status_code == 200
        assert (await client.post("/lock/release", json=held)).status_code == 200
        await waiting.done()
        assert (await client.get("/locks")).status_code == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("prefx=a", "prefx"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("limit=1&limit=2", "query"),
        ("prefix=" + "a" * 513, "prefix"),
        ("prefix=%ff", "query"),
        ("&".join(f"a{number}=1" for number in range(20)), "query"),
    ],
)
async def test_wrong_query_is_named(client: httpx.AsyncClient, query: str, field: str) -> None:
    answer = await client.get(f"/locks?{query}")
    assert problem(answer, 422, "bad_request")["field"] == field
