"""Keys have one owner, and change it only when they must."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distsync_node.ring import DEFAULT_VIRTUAL_NODES, HashRing, key_point

KEYS = [f"queue-{i}" for i in range(4_000)]
PODS = [f"distsync-{i}" for i in range(20)]
names = st.text(alphabet="ab1:-.é", min_size=1, max_size=8)


def equal(*nodes: str) -> HashRing:
    return HashRing(dict.fromkeys(nodes, 1.0))


def owners(ring: HashRing) -> list[str | None]:
    return [ring.owner(key) for key in KEYS]


def test_the_point_is_the_first_eight_bytes_of_md5() -> None:
    assert key_point("a") == int(hashlib.md5(b"a").hexdigest()[:16], 16)


def test_the_owner_is_the_first_virtual_node_clockwise() -> None:
    ring = equal("x", "y", "z")
    points = sorted(
        (key_point(f"{node}:{index}"), node)
        for node in "xyz"
        for index in range(DEFAULT_VIRTUAL_NODES)
    )
    for key in KEYS[:500]:
        at = key_point(key)
        expected = next((node for point, node in points if point >= at), points[0][1])
        assert ring.owner(key) == expected


def test_an_empty_ring_has_no_owner() -> None:
    assert HashRing({}).owner("k") is None
    assert list(HashRing({}).owners("k")) == []
    assert HashRing({"a": 0.0}).owner("k") is None


def test_no_two_points_of_twenty_pods_collide() -> None:
    points = [key_point(f"{pod}:{index}") for pod in PODS for index in range(1_000)]
    assert len(set(points)) == len(points)


def test_the_separator_keeps_names_apart() -> None:
    node1 = {key_point(f"node1:{index}") for index in range(200)}
    node11 = {key_point(f"node11:{index}") for index in range(200)}
    assert not node1 & node11


def test_ten_pods_are_balanced() -> None:
    shares = equal(*PODS[:10]).shares()
    assert max(shares.values()) * 10 <= 1.2
    assert sum(shares.values()) == pytest.approx(1.0)


def test_a_key_count_follows_the_share() -> None:
    ring = equal(*PODS[:10])
    for node, share in ring.shares().items():
        assert owners(ring).count(node) / len(KEYS) == pytest.approx(share, abs=0.03)


@given(st.sets(names, min_size=1, max_size=8), names)
@settings(max_examples=40, deadline=None)
def test_adding_a_node_moves_keys_only_to_it_and_about_their_share(
    nodes: set[str], new: str
) -> None:
    nodes.discard(new)
    before, after = owners(equal(*nodes)), owners(equal(*nodes, new))
    moved = [(old, now) for old, now in zip(before, after, strict=True) if old != now]
    assert all(now == new for _, now in moved)
    expected = len(KEYS) / (len(nodes) + 1)
    assert len(moved) <= 1.6 * expected
    assert not nodes or len(moved) >= 0.5 * expected


@given(st.sets(names, min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_removing_a_node_moves_only_its_keys(nodes: set[str]) -> None:
    gone = min(nodes)
    before, after = owners(equal(*nodes)), owners(equal(*(nodes - {gone})))
    for old, now in zip(before, after, strict=True):
        assert old in (now, gone)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.5, 3.0])
def test_a_weight_moves_keys_only_to_or_from_its_node(weight: float) -> None:
    before = owners(equal("a", "b", "c"))
    after = owners(HashRing({"a": 1.0, "b": weight, "c": 1.0}))
    for old, now in zip(before, after, strict=True):
        if old != now:
            assert (now if weight > 1 else old) == "b"
    share = weight / (2 + weight)
    assert after.count("b") / len(KEYS) == pytest.approx(share, abs=0.06)


@given(st.lists(names, unique=True, max_size=6), st.randoms())
@settings(max_examples=30, deadline=None)
def test_the_order_of_nodes_does_not_matter(nodes: list[str], random: object) -> None:
    shuffled = list(nodes)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert owners(equal(*nodes))[:200] == owners(equal(*shuffled))[:200]


def test_successors_name_every_node_once_the_owner_first() -> None:
    ring = equal(*PODS[:5])
    for key in KEYS[:50]:
        order = list(ring.owners(key))
        assert order[0] == ring.owner(key)
        assert sorted(order) == PODS[:5]
        assert order[1] == equal(*(set(PODS[:5]) - {order[0]})).owner(key)


@pytest.mark.parametrize("weight", [-1.0, 11.0, float("nan")])
def test_a_weight_out_of_range_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of a"):
        HashRing({"a": weight})
