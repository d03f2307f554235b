"""What a write may do: conditions, fences, time to live, full memory, durability by prefix."""

from __future__ import annotations

import pytest

from distsync_node.cache.judging import MAX_FENCES_PER_KEY
from distsync_node.cache.messages import Reply
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import ABSENT, Code, Durability, Found, Refused, Version
from unit.cache.cluster import Cluster, fence

MODES = list(Durability)


# --- Conditions -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_write_if_version_is_refused_with_the_version_there_is(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    first = cluster.write("b", key, "first", if_version=ABSENT)
    second = cluster.write("c", key, "second", if_version=first)
    refused = cluster.refused("b", key, "third", if_version=first)
    assert refused == Refused(Code.VERSION_MISMATCH, second)
    assert cluster.read("b", key) == "second"


@pytest.mark.parametrize("mode", MODES)
def test_absent_is_the_version_of_what_was_deleted(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    first = cluster.write("b", key, "first")
    assert cluster.refused("c", key, "x", if_version=ABSENT).code is Code.VERSION_MISMATCH
    cluster.write("c", key, None, if_version=first)
    assert cluster.refused("b", key, "x", if_version=first).version == ABSENT
    again = cluster.write("b", key, "again", if_version=ABSENT)
    assert again > first, "versions go on where they were"


@pytest.mark.parametrize("mode", MODES)
def test_a_write_under_a_deletion_is_refused_after_another_one(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    deleted = cluster.write("c", key, None)
    again = cluster.write("b", key, None)
    assert cluster.refused("c", key, "x", if_version=deleted).code is Code.VERSION_MISMATCH
    assert cluster.write("c", key, "x", if_version=again) > again
    assert cluster.read("a", key) == "x"


# --- Fences -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_older_token_is_refused_by_any_node(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "first", fence=fence("lock", 5))
    cluster.write("c", key, "second", fence=fence("lock", 7))
    for name in "abc":
        assert cluster.refused(name, key, "x", fence=fence("lock", 5)) == Refused(
            Code.FENCED, newest=7
        )
    cluster.write("a", key, "third", fence=fence("lock", 7))
    cluster.write("a", key, "unfenced")
    assert cluster.refused("b", key, "x", fence=fence("lock", 6)).code is Code.FENCED


@pytest.mark.parametrize("mode", MODES)
def test_a_fence_is_raised_only_by_a_token_that_was_verified(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    unverified = fence("lock", 5, verified=False)
    assert cluster.refused("b", key, "x", fence=unverified).code is Code.FENCE_UNVERIFIED
    cluster.write("b", key, "first", fence=fence("lock", 5))
    cluster.write("b", key, "the same token needs no more", fence=unverified)


@pytest.mark.parametrize("mode", MODES)
def test_fences_outlive_the_value_in_its_tombstone(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "first", fence=fence("lock", 7))
    cluster.write("b", key, None)
    cluster.after(2_000)
    cluster.crash("a")
    cluster.change_ring("bc")
    assert cluster.refused("c", key, "x", fence=fence("lock", 6)).code is Code.FENCED


def test_the_number_of_fences_of_a_key_is_bounded() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    for number in range(MAX_FENCES_PER_KEY):
        cluster.write("b", key, "x", fence=fence(f"lock {number}", 1))
    refused = cluster.refused("b", key, "x", fence=fence("one more", 1))
    assert refused.code is Code.TOO_MANY_FENCES
    cluster.write("b", key, "x", fence=fence("lock 3", 2))


# --- Time to live -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_value_expires_at_every_node_and_is_not_served_after(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "short", ttl_ms=1_000)
    assert [cluster.read(name, key) for name in "abc"] == ["short"] * 3
    cluster.after(700)
    assert [cluster.read(name, key) for name in "abc"] == ["short"] * 3
    cluster.after(300)
    assert [cluster.read(name, key) for name in "abc"] == [None] * 3


@pytest.mark.parametrize("mode", MODES)
def test_what_has_expired_in_redis_is_not_there_when_its_home_reads_it(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key, other = cluster.key_at("a"), cluster.key_at("b")
    for one in (key, other):
        cluster.write("b", one, "short", ttl_ms=3_000)
    cluster.after(2_900)
    assert cluster.in_redis(key) == "short"
    for name in "abc":
        cluster.crash(name)
        cluster.boot(name)
    cluster.after(200, run=False)
    cluster.change_ring("abc")
    assert cluster.read("c", key) is None
    cluster.write("c", other, "new", if_version=ABSENT)


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_counts_what_remains_from_asking_and_less_a_margin(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "short", ttl_ms=1_000)
    cluster.after(500)
    cluster.read("c", key)
    cluster.after(460)
    op = cluster.call_read("c", key)
    outcome = cluster.answer("c", op)
    assert not (isinstance(outcome, Found) and outcome.hit), "it asks before the home would say no"


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_counts_what_remains_from_asking_however_late_it_comes(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "short", ttl_ms=1_000)
    cluster.hold(Reply, target="c")
    op = cluster.call_read("c", key)
    cluster.run()
    cluster.after(300)
    cluster.release()
    assert isinstance(cluster.answer("c", op), Found)
    ends_ms = cluster.now_ms - 300 + cluster.options.remaining_at_holder_ms(1_000)
    assert cluster.nodes["c"].hit(key, ends_ms - 1) is not None
    assert cluster.nodes["c"].hit(key, ends_ms) is None


@pytest.mark.parametrize("mode", MODES)
def test_a_new_value_does_not_end_when_the_one_before_would_have(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "short", ttl_ms=500)
    cluster.write("b", key, "long")
    cluster.after(2_000)
    assert [cluster.read(name, key) for name in "abc"] == ["long"] * 3


@pytest.mark.parametrize("mode", MODES)
def test_what_has_expired_has_no_version(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    first = cluster.write("b", key, "short", ttl_ms=500)
    cluster.after(600)
    name = "b" if mode is Durability.LOCAL else "c"  # its owner alone knows
    assert cluster.refused(name, key, "x", if_version=first) == Refused(
        Code.VERSION_MISMATCH, ABSENT
    )
    cluster.write(name, key, "new", if_version=ABSENT)


# --- Redis ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_when_redis_is_full_reads_and_deletions_go_on(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key, other = cluster.key_at("a"), cluster.key_at("b")
    cluster.write("b", key, "old")
    cluster.read("c", key)
    cluster.after(2_000)
    cluster.redis.full = True
    assert [cluster.read(name, key) for name in "abc"] == ["old"] * 3
    if mode is not Durability.LOCAL:
        assert cluster.refused("c", key, "new") == Refused(Code.REDIS_FULL)
        assert cluster.refused("c", other, "new") == Refused(Code.REDIS_FULL)
    assert [cluster.read(name, key) for name in "abc"] == ["old"] * 3
    cluster.write("c", key, None)
    assert [cluster.read(name, key) for name in "abc"] == [None] * 3
    cluster.redis.full = False
    cluster.after(200)
    cluster.write("c", key, "new")
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_a_value_whose_time_is_over_goes_although_redis_is_full() -> None:
    cluster = Cluster("abc", write_back_after_ms=100_000)
    key = cluster.key_at("a")
    cluster.write("b", key, "short", ttl_ms=500)
    cluster.redis.full = True
    cluster.after(600)
    assert [cluster.read(name, key) for name in "abc"] == [None] * 3


# --- Durabilities that differ from node to node, as while they are restarted with another ------


@pytest.mark.parametrize("there", MODES)
@pytest.mark.parametrize("here", MODES)
def test_every_condition_holds_whatever_home_and_writer_think_of_durability(
    there: Durability, here: Durability
) -> None:
    cluster = Cluster("abc", durability_at={"a": there, "b": here})
    key = cluster.key_at("a")
    first = cluster.write("b", key, "first", fence=fence("lock", 5))
    second = cluster.write("b", key, "second")
    for name in "bca":
        assert cluster.refused(name, key, "x", if_version=first) == Refused(
            Code.VERSION_MISMATCH, second
        )
        unverified = fence("lock", 7, verified=False)
        assert cluster.refused(name, key, "x", fence=unverified).code is Code.FENCE_UNVERIFIED
        assert cluster.refused(name, key, "x", fence=fence("lock", 4)).code is Code.FENCED
        assert cluster.read(name, key) == "second"
    third = cluster.write("b", key, "third", if_version=second, ttl_ms=3_000)
    assert third > second
    assert cluster.write("b", key, "fourth", if_version=third) > third
    assert [cluster.read(name, key) for name in "cab"] == ["fourth"] * 3


@pytest.mark.parametrize("there", MODES)
@pytest.mark.parametrize("here", MODES)
def test_a_change_of_durability_node_by_node_loses_nothing(
    there: Durability, here: Durability
) -> None:
    cluster = Cluster("abc", durability_at={"a": there, "b": here, "c": there})
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "first")
    cluster.write("b", key, "second")
    cluster.drain("a")
    cluster.change_ring("bc")
    cluster.after(100)
    assert cluster.read("c", key) == "second"
    cluster.write("b", key, "third")
    cluster.drain("b")
    cluster.change_ring("c")
    assert cluster.read("c", key) == "third"


def test_what_an_owner_wrote_by_itself_counts_at_a_new_home_of_another_durability() -> None:
    local = {"a": Durability.LOCAL, "b": Durability.LOCAL}
    cluster = Cluster("abc", durability_at=local)
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "only in b")
    cluster.crash("a")
    cluster.change_ring("bc")
    assert [cluster.read(name, key) for name in "cb"] == ["only in b"] * 2


# --- Options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_prefix_decides_the_durability(order: int) -> None:
    prefixes = (
        ("session/", Durability.LOCAL),
        ("session/paid/", Durability.WRITE_THROUGH),
    )
    options = CacheOptions(durability=Durability.MIRRORED, durability_by_prefix=prefixes[::order])
    assert options.durability_of("orders/1") is Durability.MIRRORED
    assert options.durability_of("session/1") is Durability.LOCAL
    assert options.durability_of("session/paid/1") is Durability.WRITE_THROUGH


def test_keys_of_several_durabilities_live_side_by_side() -> None:
    cluster = Cluster("abc", durability_by_prefix=(("key-1", Durability.WRITE_THROUGH),))
    through, mirrored = "key-1", "key-2"
    for key in (through, mirrored):
        cluster.write("b", key, "new")
    assert cluster.in_redis(through) == "new"
    assert cluster.in_redis(mirrored) is None
    assert cluster.is_marked(mirrored)
    assert isinstance(cluster.write("b", mirrored, "newer"), Version)
