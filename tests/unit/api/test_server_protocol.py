"""The protocol under uvicorn, on real sockets: what the gateway cannot see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import uvicorn

from distsync_node.api.direct import direct_protocol
from distsync_node.api.gateway import Gateway
from distsync_node.api.server import HttpProtocol
from unit.api.local_node import LocalNode
from waiting_for import eventually

ACQUIRE = b'{"name":"x","owner":"a"}'


class QuickProtocol(HttpProtocol):
    max_header_bytes = 4_096
    header_timeout_s = 0.05


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(5):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self._reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def is_closed(self) -> bool:
        async with asyncio.timeout(5):
            return await self._reader.read() == b""

    def close(self) -> None:
        self._writer.close()


class Server:
    def __init__(self, port: int, protocols: Collection[Any]) -> None:
        self.port = port
        self.protocols = protocols  # of the connections that are open
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


def quick_direct(app: Gateway) -> type[HttpProtocol]:
    class QuickDirectProtocol(direct_protocol(app)):  # type: ignore[misc]
        max_header_bytes = QuickProtocol.max_header_bytes
        header_timeout_s = QuickProtocol.header_timeout_s

    return QuickDirectProtocol


@pytest.fixture(params=["asgi", "direct"])
async def server(app: Gateway, request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        http=QuickProtocol if request.param == "asgi" else quick_direct(app),
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=1,
    )
    uvicorn_server = uvicorn.Server(config)
    serving = asyncio.create_task(uvicorn_server._serve(None))
    await eventually(lambda: uvicorn_server.started)
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    server = Server(port, uvicorn_server.server_state.connections)
    yield server
    server.close()
    uvicorn_server.should_exit = True
    await serving


def request(path: str, body: bytes, method: str = "POST") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def test_requests_in_one_piece_and_byte_by_byte(server: Server) -> None:
    connection = await server.connect()
    connection.send(request("/lock/acquire", ACQUIRE))
    assert (await connection.answer()).status == 200
    for byte in request("/lock/acquire", ACQUIRE):
        connection.send(bytes([byte]))
    assert (await connection.answer()).status == 409


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    connection = await server.connect()
    connection.send(
        request("/lock/acquire", ACQUIRE)
        + request("/lock/acquire", ACQUIRE)
        + request("/healthz", b"", "GET")
    )
    assert [(await connection.answer()).status for _ in range(3)] == [200, 409, 200]


async def test_encoded_names_reach_the_lock(server: Server, node: LocalNode) -> None:
    connection = await server.connect()
    connection.send(request("/lock/acquire", b'{"name":"orders/42","owner":"a"}'))
    await connection.answer()
    connection.send(request("/lock/orders%2F42", b"", "GET"))
    answer = await connection.answer()
    assert msgspec.json.decode(answer.body)["holders"][0]["owner"] == "a"


@pytest.mark.parametrize(
    "start",
    [
        b"GET /healthz HTTP/1.1\r\nx: " + b"y" * 8_000,
        b"GET /" + b"a" * 8_000,
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"x-%d: y\r\n" % n for n in range(1_000)),
    ],
)
async def test_headers_without_end_are_cut(server: Server, start: bytes) -> None:
    connection = await server.connect()
    connection.send(start)
    answer = await connection.answer()
    assert answer.status == 431
    assert answer.headers["content-type"] == "application/problem+json"
    assert msgspec.json.decode(answer.body)["code"] == "headers_too_large"
    assert await connection.is_closed()


async def test_slow_headers_are_given_up(server: Server) -> None:
    connection = await server.connect()
    connection.send(b"GET /healthz HT")
    answer = await connection.answer()
    assert answer.status == 408
    assert await connection.is_closed()


async def test_silent_connection_is_closed(server: Server) -> None:
    connection = await server.connect()
    assert await connection.is_closed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /lock/acquire HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_400(server: Server, garbage: bytes) -> None:
    connection = await server.connect()
    connection.send(garbage)
    answer = await connection.answer()
    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["code"] == "malformed_request"
    assert await connection.is_closed()


async def test_large_body_is_refused_and_the_answer_arrives(server: Server) -> None:
    connection = await server.connect()
    connection.send(request("/lock/acquire", b" " * 1_000_000))
    answer = await connection.answer()
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert await connection.is_closed()


async def test_closed_connection_cancels_the_wait(server: Server, node: LocalNode) -> None:
    first = await server.connect()
    first.send(request("/lock/acquire", ACQUIRE))
    await first.answer()
    second = await server.connect()
    second.send(request("/lock/acquire", b'{"name":"x","owner":"b","wait_ms":60000}'))
    await eventually(lambda: node.waiting_count() == 1)
    second.close()
    await eventually(lambda: node.waiting_count() == 0)
    assert len(node.cancelled) == 1


async def test_slow_body_is_given_up(server: Server) -> None:
    connection = await server.connect()
    connection.send(request("/lock/acquire", ACQUIRE)[:-3])
    answer = await connection.answer()
    assert answer.status == 408
    assert await connection.is_closed()


async def test_answers_are_the_same_with_and_without_the_asgi_cycle(
    server: Server, node: LocalNode
) -> None:
    connection = await server.connect()
    connection.send(request("/v1/lock/acquire", ACQUIRE))
    granted = await connection.answer()
    assert granted.headers["distsync-node"] == "node-1"
    assert granted.headers["distsync-leader"]
    assert granted.headers["content-type"] == "application/json"
    assert granted.headers["x-request-id"]
    connection.send(request("/lock/acquire", b"[1]"))
    refused = await connection.answer()
    assert refused.status == 422
    assert msgspec.json.decode(refused.body)["field"] == "body"


async def test_a_connection_that_is_to_close_is_closed_after_the_answer(server: Server) -> None:
    connection = await server.connect()
    head, _, body = request("/lock/acquire", ACQUIRE).partition(b"\r\n\r\n")
    connection.send(head + b"\r\nconnection: close\r\n\r\n" + body)
    answer = await connection.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await connection.is_closed()


async def test_a_body_in_chunks_is_read(server: Server) -> None:
    connection = await server.connect()
    connection.send(
        b"POST /lock/acquire HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ACQUIRE), ACQUIRE)
    )
    assert (await connection.answer()).status == 200


async def test_answers_that_a_client_does_not_read_do_not_pile_up(server: Server) -> None:
    connection = await server.connect()
    connection.send(request("/lock/acquire", ACQUIRE))
    assert (await connection.answer()).status == 200
    (protocol,) = server.protocols
    protocol.pause_writing()  # as asyncio does when too many bytes wait for the client
    connection.send(request("/lock/acquire", ACQUIRE))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await connection.answer()
    protocol.resume_writing()
    assert (await connection.answer()).status == 409
