"""`max_bytes` bounds what a node really takes, under a working set ten times larger."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from distsync_node.cache.effects import RedisLoad
from distsync_node.cache.events import ClientRead, Loaded, NodeLease, RingAdopted, Tick
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import Copy, OpId, Version, Written
from distsync_node.cluster.ring_state import Epoch, Incarnation, RingState, Server
from distsync_node.raft.types import MemberId
from unit.cache.cluster import Cluster

MAX_BYTES = 1 << 20
NOW_MS = 1_000


def alone() -> CacheNode:
    """A node that is the home of all it reads: its memory has the lines and the directory."""
    server = Server("a", MemberId("m-a"), Incarnation(1))
    node = CacheNode(server, CacheOptions(max_bytes=MAX_BYTES))
    node.step(RingAdopted(RingState(Epoch(1), (server,)), left_have_ended=True), NOW_MS)
    node.step(NodeLease(Epoch(1), 1 << 40), NOW_MS)
    node.step(Tick(), NOW_MS)
    return node


@pytest.mark.parametrize("size", [0, 100, 1_000, 20_000])
def test_memory_stays_within_max_bytes_and_a_quarter(size: int) -> None:
    node = alone()
    keys = [f"key-{number:08}" for number in range(min(9_000, 10 * MAX_BYTES // (size + 1_000)))]
    for key in keys:
        node.context.home_of(key)  # the ring remembers so many homes, whatever the cache has
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number, key in enumerate(keys):
            effects = node.step(ClientRead(OpId(number), key), NOW_MS)
            (load,) = [one for one in effects if isinstance(one, RedisLoad)]
            node.step(Loaded(load.request, Copy(Version(1, 1), bytes(size)), None), NOW_MS)
        del effects, load
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(node.lines.held.lru) > 40
    assert taken <= MAX_BYTES * 5 // 4
    assert taken >= MAX_BYTES // 2, "and it is made use of"


def test_what_a_home_holds_for_others_counts_as_well() -> None:
    cluster = Cluster("abc", max_bytes=100_000, max_dirty_bytes=60_000)

    def write(name: str, number: int) -> None:
        op = cluster.call_write(name, f"key-{number}", "x" * 1_000)
        cluster.run()
        assert isinstance(cluster.answer(name, op), Written)

    node = cluster.nodes["b"]
    lines, home = node.lines.held.lru, node.home.directory
    for number in range(60):
        write("b", number)
        cluster.after(1_200)  # it is written back
    full = lines.bytes
    assert 95_000 < full <= 100_000
    for number in range(100, 148):
        write("ac"[number % 2], number)
        assert lines.bytes + home.dirty_bytes + node.kept.bytes <= 100_000
    assert home.dirty_bytes > 20_000
    assert lines.bytes > 50_000
