"""Why a read was no hit, by what had happened to the line before."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distsync_node.cache.misses import BYTES_A_NOTE, Gone, Miss
from distsync_node.cache.types import LINE_OVERHEAD_BYTES, Durability
from unit.cache.cluster import Cluster

MAX_BYTES = 8 * BYTES_A_NOTE


def was_invalidated(cluster: Cluster, key: str) -> None:
    cluster.read("b", key)
    cluster.write("c", key, "other")


def was_invalidated_by_its_home(cluster: Cluster, key: str) -> None:
    cluster.read("b", key)
    cluster.write("a", key, "other")


def was_evicted(cluster: Cluster, key: str) -> None:
    cluster.read("b", key)
    for number in range(MAX_BYTES // LINE_OVERHEAD_BYTES + 1):
        cluster.read("b", f"other-{number}")


def has_expired(cluster: Cluster, key: str) -> None:
    cluster.write("b", key, "short", ttl_ms=1_000)
    cluster.after(1_000)


def has_expired_and_its_home_has_seen_it(cluster: Cluster, key: str) -> None:
    cluster.write("b", key, "short", ttl_ms=1_000)
    cluster.after(1_000)
    cluster.read("c", key)


def lost_its_lease(cluster: Cluster, key: str) -> None:
    cluster.read("b", key)
    cluster.cut("b", "a")
    cluster.after(2_000)


def lost_its_home(cluster: Cluster, key: str) -> None:
    cluster.read("b", key)
    cluster.crash("a")
    cluster.change_ring("bc")


def is_asked_for(cluster: Cluster, key: str) -> None:
    cluster.call_read("b", key)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (lambda _cluster, _key: None, Miss.ABSENT),
        (was_invalidated, Miss.INVALIDATED),
        (was_invalidated_by_its_home, Miss.INVALIDATED),
        (was_evicted, Miss.EVICTED),
        (has_expired, Miss.EXPIRED),
        (has_expired_and_its_home_has_seen_it, Miss.EXPIRED),
        (lost_its_lease, Miss.NO_LEASE),
        (lost_its_home, Miss.NO_LEASE),
        (is_asked_for, Miss.ON_ITS_WAY),
    ],
)
def test_a_miss_says_why(what: Callable[[Cluster, str], None], reason: Miss) -> None:
    cluster = Cluster("abc", durability=Durability.MIRRORED, max_bytes=MAX_BYTES)
    key = cluster.key_at("a")
    what(cluster, key)
    node = cluster.nodes["b"]
    assert node.hit(key, cluster.now_ms) is None
    assert node.lines.held.miss(key) is reason


def test_the_reason_counts_once_and_is_remembered_for_so_many_lines() -> None:
    gone = Gone(100 * BYTES_A_NOTE)
    gone.note("old", Miss.EVICTED)
    gone.note("twice", Miss.EVICTED)
    gone.note("twice", Miss.INVALIDATED)
    assert [gone.take("twice"), gone.take("twice")] == [Miss.INVALIDATED, Miss.ABSENT]
    for number in range(100):
        gone.note(f"key-{number}", Miss.NO_LEASE)
    assert gone.take("old") is Miss.ABSENT
    assert gone.take("key-0") is Miss.NO_LEASE
