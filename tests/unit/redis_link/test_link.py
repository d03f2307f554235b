"""One connection: many calls, one pipeline, and what a loss means for each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest

from distsync_node.redis_link import link as link_module
from distsync_node.redis_link.link import (
    Credentials,
    Endpoint,
    Link,
    LinkBusy,
    LinkLost,
    connect,
    pack_command,
)
from redis_server import RedisServer

PING = pack_command("PING")
OTHER_STALL_S = 0.2


async def open_link(redis: RedisServer, stall_s: float = 5.0) -> Link:
    endpoint = Endpoint(path=str(redis.socket))
    return await connect(endpoint, Credentials(), connect_s=2.0, stall_s=stall_s)


@pytest.fixture
async def link(redis: RedisServer) -> AsyncIterator[Link]:
    link = await open_link(redis)
    yield link
    link.close()


async def test_replies_come_to_their_calls(link: Link) -> None:
    calls = [link.call(pack_command("ECHO", str(i))) for i in range(500)]
    assert await asyncio.gather(*calls) == [str(i).encode() for i in range(500)]


async def test_calls_of_one_turn_leave_in_one_write(redis: RedisServer, link: Link) -> None:
    writes = []
    transport = link._transport
    assert transport is not None
    write = transport.write

    class Spy:
        def write(self, data: bytes) -> None:
            writes.append(data)
            write(data)

        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

    link._transport = Spy()  # type: ignore[assignment]

    async def caller() -> None:
        for _ in range(10):
            await link.call(PING)

    await asyncio.gather(*[caller() for _ in range(64)])
    assert sum(data.count(b"PING") for data in writes) == 640
    assert len(writes) <= 40


async def test_an_error_reply_is_a_value_and_fails_no_other_call(link: Link) -> None:
    wrong, right = link.call(pack_command("NOSUCH")), link.call(PING)
    assert isinstance(await wrong, hiredis.ReplyError)
    assert await right == b"PONG"


async def test_binary_and_large_replies(link: Link) -> None:
    body = bytes(range(256)) * 40_000
    assert await link.call(pack_command("ECHO", body)) == body


async def test_a_cancelled_caller_disturbs_no_other(link: Link) -> None:
    calls = [link.call(pack_command("ECHO", str(i))) for i in range(3)]
    calls[1].cancel()
    assert await calls[0] == b"0"
    assert await calls[2] == b"2"
    assert await link.call(PING) == b"PONG"


async def test_calls_in_flight_when_the_server_dies_may_have_been_done(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path) as redis:
        link = await open_link(redis)
        redis.pause()
        sent = link.call(PING)
        await asyncio.sleep(0)  # the write leaves
        redis.kill()
        with pytest.raises(LinkLost) as lost:
            await sent
        assert lost.value.was_sent
        with pytest.raises(LinkLost) as lost:
            link.call(PING)
        assert not lost.value.was_sent


async def test_a_call_that_has_not_left_was_certainly_not_done(link: Link) -> None:
    unsent = link.call(PING)
    link.close()
    with pytest.raises(LinkLost) as lost:
        await unsent
    assert not lost.value.was_sent


async def test_a_server_that_stalls_is_given_up(redis: RedisServer) -> None:
    link = await open_link(redis, OTHER_STALL_S)
    redis.pause()
    try:
        with pytest.raises(LinkLost) as lost:
            await link.call(PING)
    finally:
        redis.resume()
    assert lost.value.was_sent
    assert link.is_lost


async def test_a_link_without_calls_does_not_stall(redis: RedisServer) -> None:
    link = await open_link(redis, 0.5)
    await link.call(PING)
    loop = asyncio.get_running_loop()
    until = loop.time() + 1.0
    while loop.time() < until:
        await asyncio.sleep(0.01)
    assert await link.call(PING) == b"PONG"
    link.close()


async def test_too_many_calls_are_not_sent(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_CALLS_IN_FLIGHT", 2)
    calls = [link.call(PING), link.call(PING)]
    with pytest.raises(LinkBusy):
        link.call(PING)
    await asyncio.gather(*calls)
    assert await link.call(PING) == b"PONG"


async def test_too_many_bytes_are_not_sent(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_BUFFERED_BYTES", 1_000)
    call = link.call(pack_command("ECHO", b"x" * 2_000))
    with pytest.raises(LinkBusy):
        link.call(PING)
    await call
    assert await link.call(PING) == b"PONG"


async def test_what_does_not_speak_redis_is_given_up() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        with pytest.raises(LinkLost, match="protocol"):
            await connect(
                Endpoint(host="127.0.0.1", port=port), Credentials(), connect_s=2.0, stall_s=2.0
            )


async def test_a_server_that_accepts_and_says_nothing_is_left_in_time() -> None:
    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(ignore, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        with pytest.raises(TimeoutError):
            await connect(
                Endpoint(host="127.0.0.1", port=port), Credentials(), connect_s=0.1, stall_s=2.0
            )
