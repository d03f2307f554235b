"""Calls that share requests, over real connections: a peer port on the other side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from distsync_node.peers import outbound, sharing
from distsync_node.peers.inbound import RespondBytes
from distsync_node.peers.outbound import PeerUnreachable, Target
from distsync_node.peers.sharing import SharedRequests
from unit.peer_port import PeerPort
from waiting_for import eventually

SECRET = "secret"
PATH = "/shared"
LOCALHOST = "127.0.0.1"
SOON = 10.0

encode = msgspec.msgpack.encode
decode = msgspec.msgpack.Decoder(list[str]).decode


class Port(PeerPort):
    """A peer port that answers each call with its own words in capitals, at once or when told."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []
        self.held: list[RespondBytes] = []
        self.holds = False
        self.answers: bytes | None = None

    def receive(self, body: bytes, respond: RespondBytes) -> None:
        calls = decode(body)
        self.batches.append(calls)
        if self.holds:
            self.held.append(respond)
        else:
            respond(self.answers or encode([call.upper() for call in calls]))

    async def __aenter__(self) -> Port:
        self.serve({PATH: self.receive}, SECRET)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def has(self, count: int) -> None:
        await eventually(lambda: sum(map(len, self.batches)) >= count)


def make_target(url: str) -> Target:
    return Target(url, SECRET, "n1")


@pytest.fixture
async def port() -> AsyncIterator[Port]:
    async with Port() as port:
        yield port


@pytest.fixture
async def shared(port: Port) -> AsyncIterator[SharedRequests[str]]:
    shared = SharedRequests(make_target, PATH, decode)
    shared.address(port.url)
    yield shared
    await shared.close()


async def call(shared: SharedRequests[str], *words: str) -> list[str | BaseException]:
    calls = (shared.call(encode(word), SOON) for word in words)
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_calls_of_one_moment_share_a_request_and_each_has_its_own_reply(
    port: Port, shared: SharedRequests[str]
) -> None:
    assert await call(shared, *"abcd") == ["A", "B", "C", "D"]
    assert port.batches == [list("abcd")]


async def test_calls_gather_while_requests_are_in_flight(
    port: Port, shared: SharedRequests[str]
) -> None:
    port.holds = True
    first = [asyncio.create_task(shared.call(encode("1"), SOON))]
    await port.has(1)
    second = [asyncio.create_task(shared.call(encode("2"), SOON))]
    await port.has(2)
    later = [asyncio.create_task(shared.call(encode(str(n)), SOON)) for n in range(3, 9)]
    await asyncio.sleep(0.02)
    assert port.batches == [["1"], ["2"]]
    port.holds = False
    for respond, words in zip(port.held, port.batches[:2], strict=True):
        respond(encode(words))
    replies = [await task for task in (*first, *second, *later)]
    assert replies == [str(n) for n in range(1, 9)]
    assert port.batches[2:] == [[str(n) for n in range(3, 9)]]


async def test_a_request_has_a_bound_in_calls_and_in_bytes(
    port: Port, shared: SharedRequests[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_CALLS", 4)
    monkeypatch.setattr(sharing, "MAX_BYTES", 30)
    words = ["a", "b", "c", "d", "e", "f" * 20, "g" * 20, "h" * 100, "i"]
    assert await call(shared, *words) == [word.upper() for word in words]
    assert [len(batch) for batch in port.batches] == [4, 2, 1, 1, 1]


async def test_who_gives_up_before_its_call_has_left_is_not_sent(
    port: Port, shared: SharedRequests[str]
) -> None:
    tasks = [asyncio.create_task(shared.call(encode(word), SOON)) for word in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert [tasks[0].result(), tasks[2].result()] == ["A", "C"]
    assert port.batches == [["a", "c"]]


async def test_nobody_listens() -> None:
    with socket.create_server((LOCALHOST, 0)) as gone:
        url = f"http://{LOCALHOST}:{gone.getsockname()[1]}"
    shared = SharedRequests(make_target, PATH, decode)
    with pytest.raises(PeerUnreachable) as nowhere:
        await shared.call(encode("a"), SOON)
    assert not nowhere.value.sent
    shared.address(url)
    for error in await call(shared, "a", "b"):
        assert isinstance(error, PeerUnreachable)
        assert not error.sent
    await shared.close()


async def test_no_answer_in_time_leaves_a_doubt_only_about_what_was_sent(
    port: Port, shared: SharedRequests[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "MAX_CONNECTIONS", 1)
    port.holds = True
    sent = asyncio.create_task(shared.call(encode("sent"), 2.0))
    await port.has(1)
    for task, was_sent in ((asyncio.create_task(shared.call(b"x", 0.05)), False), (sent, True)):
        with pytest.raises(PeerUnreachable, match="no answer in time") as late:
            await task
        assert late.value.sent is was_sent
    port.holds = False
    port.held[0](encode(["too late"]))
    assert await call(shared, "next") == ["NEXT"]


@pytest.mark.parametrize("answer", [b"\xc1", encode(["one too", "many"]), encode([])])
async def test_an_answer_that_cannot_be_read_leaves_a_doubt(
    answer: bytes, port: Port, shared: SharedRequests[str]
) -> None:
    port.answers = answer
    (error,) = await call(shared, "a")
    assert isinstance(error, PeerUnreachable)
    assert error.sent
    port.answers = None
    assert await call(shared, "b") == ["B"]


async def test_a_connection_that_breaks_leaves_a_doubt_and_is_made_again(
    port: Port, shared: SharedRequests[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 0.1)
    port.holds = True
    (error,) = await call(shared, "a")
    assert isinstance(error, PeerUnreachable)
    assert error.sent
    port.holds = False
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 60.0)
    assert await call(shared, "b") == ["B"]


async def test_another_address_ends_what_was_for_the_one_before(
    port: Port, shared: SharedRequests[str]
) -> None:
    port.holds = True
    waiting = asyncio.create_task(shared.call(encode("a"), SOON))
    await port.has(1)
    async with Port() as other:
        shared.address(other.url)
        with pytest.raises(PeerUnreachable) as moved:
            await waiting
        assert moved.value.sent
        assert await call(shared, "b") == ["B"]
        assert other.batches == [["b"]]
        await shared.close()


async def test_closed_it_calls_nobody(port: Port, shared: SharedRequests[str]) -> None:
    assert await call(shared, "a") == ["A"]
    await shared.close()
    (error,) = await call(shared, "b")
    assert isinstance(error, PeerUnreachable)
    assert not error.sent
    assert port.batches == [["a"]]
