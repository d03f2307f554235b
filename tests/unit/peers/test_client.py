"""What is certain about a call that got no answer: whether the other side may have acted on it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from distsync_node.peers import keepalive
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.peers.wire import ATTEMPT_HEADER


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PeerClient]:
    # A process that gets no time for so long takes a connection that is there for late.
    monkeypatch.setattr("distsync_node.peers.client.CONNECT_SECONDS", 60.0)
    async with PeerClient("secret", "n1") as client:
        yield client


class Server:
    """Answers each request, once it is there, with the same bytes, and closes."""

    def __init__(self, answer: bytes) -> None:
        self.requests: list[bytes] = []
        self._answer = answer

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(await reader.readuntil(b"body"))
        writer.write(self._answer)
        writer.close()


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} So", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_connections_are_probed_while_nothing_moves_on_them(
    client: PeerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[socket.socket] = []
    monkeypatch.setattr(keepalive, "probe", probed.append)
    async with Server(http(200)) as url:
        await client.post(url, b"body", timeout_seconds=5)
    assert len(probed) == 1


async def test_the_body_of_a_200_and_who_asked(client: PeerClient) -> None:
    server = Server(http(200, b"yes", **{ATTEMPT_HEADER: "7"}))
    attempts: list[int] = []
    async with server as url:
        answer = await client.post(url, b"body", timeout_seconds=5, on_attempt=attempts.append)
    assert answer == b"yes"
    assert attempts == [7]
    (request,) = server.requests
    assert b"Authorization: Bearer secret\r\n" in request
    assert b"distsync-from: n1\r\n" in request


@pytest.mark.parametrize(
    ("answer", "may_have_acted"),
    [
        (http(401), False),
        (http(404), False),
        (http(500), True),
        (http(503), True),
        (b"", True),  # the connection broke
        (b"HTTP/1.1 200 So\r\ncontent-length: 9\r\n\r\nhalf", True),
        (b"no HTTP at all\r\n\r\n", True),
    ],
    ids=["401", "404", "500", "503", "nothing", "half an answer", "not HTTP"],
)
async def test_what_was_sent_may_have_been_acted_upon_unless_it_was_refused(
    answer: bytes, may_have_acted: bool, client: PeerClient
) -> None:
    async with Server(answer) as url:
        with pytest.raises(PeerUnreachable) as error:
            await client.post(url, b"body", timeout_seconds=60)
    assert error.value.sent is may_have_acted


async def test_no_answer_in_time_may_still_come(client: PeerClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts and says nothing
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PeerUnreachable) as error:
            await client.post(url, b"body", timeout_seconds=1.0)
    assert error.value.sent


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid", "a..b", "a" * 64])
async def test_without_a_connection_nothing_was_sent(host: str, client: PeerClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(PeerUnreachable) as error:
        await client.post(f"http://{host}:{port}", b"body", timeout_seconds=5)
    assert not error.value.sent


async def test_a_connection_that_is_not_taken_in_time_carried_nothing(client: PeerClient) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = []
        for _ in range(4):  # the queue of the listener is full: further connections are ignored
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        with pytest.raises(PeerUnreachable) as error:
            await client.post(f"http://127.0.0.1:{address[1]}", b"body", timeout_seconds=30)
        assert not error.value.sent
        for filler in fillers:
            filler.close()


async def test_a_closed_client_sends_nothing(client: PeerClient) -> None:
    await client.__aexit__()
    with pytest.raises(PeerUnreachable) as error:
        await client.post("http://127.0.0.1:1", b"body", timeout_seconds=1)
    assert not error.value.sent


async def test_a_name_whose_lookup_hangs_was_sent_nothing(
    client: PeerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", hang)
    with pytest.raises(PeerUnreachable) as caught:
        await client.post("http://peer.example:1", b"body", timeout_seconds=2.0)
    assert not caught.value.sent
