"""What a node counts of its lines: each that others read or write once, whoever is its home."""

from __future__ import annotations

import pytest

from distsync_node.cache.messages import Reply, Yielded
from distsync_node.cache.types import Durability
from unit.cache.cluster import Cluster

MODES = list(Durability)


def counts(cluster: Cluster, name: str) -> tuple[int, int]:
    """The snoops and the invalidations of a node."""
    held = cluster.nodes[name].lines.held
    return held.snoops, held.invalidations


@pytest.mark.parametrize("home", ["a", "b", "c"])
@pytest.mark.parametrize("mode", MODES)
def test_a_line_that_another_node_reads_or_writes_counts_once_at_its_holder(
    mode: Durability, home: str
) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at(home)
    cluster.write("b", key, "first")
    assert [counts(cluster, name) for name in "abc"] == [(0, 0)] * 3
    cluster.read("c", key)
    assert [counts(cluster, name) for name in "abc"] == [(0, 0), (1, 0), (0, 0)]
    cluster.write("c", key, "second")
    assert [counts(cluster, name) for name in "abc"] == [(0, 0), (1, 1), (0, 0)]
    cluster.write("b", key, "third")
    assert [counts(cluster, name) for name in "abc"] == [(0, 0), (1, 1), (0, 1)]


@pytest.mark.parametrize("what", ["read", "write"])
def test_what_is_asked_again_because_its_answer_was_lost_counts_once(what: str) -> None:
    cluster = Cluster("abc", durability=Durability.MIRRORED)
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    cluster.lose(Yielded)
    op = cluster.call_read("c", key) if what == "read" else cluster.call_write("c", key, "second")
    cluster.after(4 * cluster.options.resend_ms)
    assert cluster.answer("c", op) is None
    cluster.mend()
    cluster.after(2 * cluster.options.resend_ms)
    assert cluster.answer("c", op) is not None
    assert counts(cluster, "b") == ((1, 0) if what == "read" else (0, 1))


@pytest.mark.parametrize("what", ["read", "write"])
@pytest.mark.parametrize("other", ["read", "write"])
def test_a_grant_that_is_overtaken_counts_once(what: str, other: str) -> None:
    cluster = Cluster("abc", durability=Durability.MIRRORED)
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    _ = cluster.call_read("b", key) if what == "read" else cluster.call_write("b", key, "first")
    cluster.run()
    cluster.lose(Yielded)
    _ = cluster.call_read("c", key) if other == "read" else cluster.call_write("c", key, "second")
    cluster.after(4 * cluster.options.resend_ms)
    cluster.mend()
    cluster.after(2 * cluster.options.resend_ms)
    assert counts(cluster, "b") == ((1, 0) if other == "read" else (0, 1))


def test_a_line_whose_time_is_over_was_written_by_nobody() -> None:
    cluster = Cluster("abc", durability=Durability.MIRRORED)
    key = cluster.key_at("a")
    cluster.write("b", key, "brief", ttl_ms=500)
    cluster.after(1_000)
    assert cluster.read("c", key) is None
    assert [counts(cluster, name) for name in "abc"] == [(0, 0)] * 3
