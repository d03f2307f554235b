"""Connections that are made again, to servers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from distsync_node.errors import RedisUnavailable
from distsync_node.redis_link.address import parse_redis_url
from distsync_node.redis_link.link import Link
from distsync_node.redis_link.topology import Timing, Topology, find_topology

TIMING = Timing(connect_s=10.0, stall_s=10.0)


class Strange:
    """A server that answers whatever it is asked in one way, or not at all."""

    def __init__(self) -> None:
        self.answer = b""
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while await reader.read(4_096):
            writer.write(self.answer)
        writer.close()


@pytest.fixture
async def strange() -> AsyncIterator[Strange]:
    strange = Strange()
    server = await asyncio.start_server(strange.serve, "127.0.0.1", 0)
    strange.port = server.sockets[0].getsockname()[1]
    yield strange
    server.close()


async def nothing(_link: Link) -> None:
    return


def topology_of(url: str) -> Topology:
    return find_topology(parse_redis_url(url), TIMING, nothing)


async def test_who_waits_for_a_server_that_is_closed_is_refused_and_connects_no_more(
    strange: Strange,
) -> None:
    topology = topology_of(f"redis://127.0.0.1:{strange.port}")
    deadline = asyncio.get_running_loop().time() + 60
    waiting = asyncio.create_task(topology.link(b"k", deadline, waits=False))
    async with asyncio.timeout(5):
        while not strange.connections:
            await asyncio.sleep(0.001)
        await topology.close()
        with pytest.raises(RedisUnavailable):
            await waiting
    assert strange.connections == 1


async def test_a_sentinel_that_answers_nonsense_is_asked_again_but_not_all_the_time(
    strange: Strange,
) -> None:
    strange.answer = b"*0\r\n"
    topology = topology_of(f"redis+sentinel://127.0.0.1:{strange.port}/primary")
    with pytest.raises(RedisUnavailable):
        await topology.check()
    deadline = asyncio.get_running_loop().time() + 0.5
    with pytest.raises(RedisUnavailable):
        await topology.link(b"k", deadline, waits=False)
    assert 1 < strange.connections < 10
    await topology.close()
