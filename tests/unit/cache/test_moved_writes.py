"""Writes that are under way when the home of their key becomes another one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.messages import Ask, AskRead, Mirror, Mirrored, Reply, Report, Yielded
from distsync_node.cache.types import Code, Durability, Missing, OpId, Refused, Written
from distsync_node.ring import HashRing
from unit.cache.cluster import Cluster

ALL = [Durability.MIRRORED, Durability.WRITE_THROUGH]
Way = Callable[[Cluster, str], OpId]


def key_that_moves(before: str = "a", after: str = "d") -> str:
    """Return a key of that home, which moves to the other when d joins a, b and c."""
    old, new = (HashRing(dict.fromkeys(names, 1.0)) for names in ("abc", "abcd"))
    for number in range(10_000):
        key = f"key-{number}"
        if (old.owner(key), new.owner(key)) == (before, after):
            return key
    raise AssertionError("no such key")


def about_to_grow(durability: Durability = Durability.MIRRORED) -> tuple[Cluster, str]:
    """A cluster whose node d runs beside the ring, and a key that moves to it from a."""
    cluster = Cluster("abc", durability=durability)
    cluster.boot("d")
    return cluster, key_that_moves()


def is_put(effect: RedisLoad | RedisPut) -> bool:
    return isinstance(effect, RedisPut)


def is_load(effect: RedisLoad | RedisPut) -> bool:
    return isinstance(effect, RedisLoad)


# --- Certainly not done -----------------------------------------------------------------------


def ask_lost(cluster: Cluster, key: str) -> OpId:
    cluster.lose(Ask, source="b", target="a")
    return cluster.call_write("b", key, "new")


def being_loaded(cluster: Cluster, key: str) -> OpId:
    cluster.hold_redis = is_load
    return cluster.call_write("b", key, "new")


def waiting_for_a_sharer(cluster: Cluster, key: str) -> OpId:
    assert cluster.read("c", key) == "old"
    cluster.lose(Yielded, source="c")
    return cluster.call_write("b", key, "new")


def behind_another_write(cluster: Cluster, key: str) -> OpId:
    """Which is made by the next home as well, after it."""
    assert cluster.read("c", key) == "old"
    cluster.lose(Yielded, source="b")
    cluster.call_write("c", key, "other")
    cluster.run()
    return cluster.call_write("b", key, "new")


def being_marked(cluster: Cluster, key: str) -> OpId:
    cluster.hold_redis = is_put
    return cluster.call_write("b", key, "new")


@pytest.mark.parametrize(
    "way", [ask_lost, being_loaded, waiting_for_a_sharer, behind_another_write, being_marked]
)
def test_a_write_that_its_home_had_not_made_is_made_by_the_next(way: Way) -> None:
    cluster, key = about_to_grow()
    if way not in (being_loaded, being_marked):
        cluster.write("b", key, "old")
        cluster.after(3_000)
    op = way(cluster, key)
    cluster.run()
    assert cluster.answer("b", op) is None
    cluster.change_ring("abcd")
    cluster.mend()
    cluster.hold_redis = lambda _effect: False
    cluster.after(300)
    assert isinstance(cluster.answer("b", op), Written)
    value = cluster.read("a", key)
    assert value == ("other" if way is behind_another_write else "new")
    assert [cluster.read(name, key) for name in "bcd"] == [value] * 3


@pytest.mark.parametrize("mode", ALL)
def test_a_write_at_its_own_home_is_made_by_the_next(mode: Durability) -> None:
    cluster, key = about_to_grow(mode)
    cluster.hold_redis = is_load
    op = cluster.call_write("a", key, "new")
    cluster.run()
    cluster.change_ring("abcd")
    cluster.hold_redis = lambda _effect: False
    cluster.after(100)
    assert isinstance(cluster.answer("a", op), Written)
    assert cluster.read("d", key) == "new"


# --- In doubt ---------------------------------------------------------------------------------


def committed_and_not_told(cluster: Cluster, key: str) -> OpId:
    cluster.lose(Reply, target="b")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.mend()
    return op


def in_redis_and_not_known(cluster: Cluster, key: str) -> OpId:
    """Redis does it before the next home reads; the answer comes to nobody."""
    op = being_written(cluster, key)
    cluster.run()
    _, effect = cluster.held_redis[0]
    cluster.redis.apply(effect)
    return op


def being_written(cluster: Cluster, key: str) -> OpId:
    """Redis does it when the next home has read the key: it refuses."""
    cluster.hold_redis = is_put
    return cluster.call_write("b", key, "new")


def being_mirrored(cluster: Cluster, key: str) -> OpId:
    """The home writes, and its successor has the copy or not."""
    cluster.lose(Mirror)
    return cluster.call_write("a", key, "new")


def mirrored_and_not_known(cluster: Cluster, key: str) -> OpId:
    cluster.lose(Mirrored)
    return cluster.call_write("a", key, "new")


@pytest.mark.parametrize(
    ("way", "mode"),
    [
        (committed_and_not_told, Durability.MIRRORED),
        (committed_and_not_told, Durability.WRITE_THROUGH),
        (in_redis_and_not_known, Durability.WRITE_THROUGH),
        (being_written, Durability.WRITE_THROUGH),
        (being_mirrored, Durability.MIRRORED),
        (mirrored_and_not_known, Durability.MIRRORED),
    ],
)
def test_a_write_in_doubt_is_made_once(way: Way, mode: Durability) -> None:
    cluster, key = about_to_grow(mode)
    version = cluster.write("c", key, "old")
    cluster.after(3_000)
    op = way(cluster, key)
    cluster.run()
    writer = "a" if way in (being_mirrored, mirrored_and_not_known) else "b"
    assert cluster.answer(writer, op) is None
    cluster.change_ring("abcd")
    cluster.mend()
    cluster.hold_redis = lambda _effect: False
    cluster.after(300)
    outcome = cluster.answer(writer, op)
    assert isinstance(outcome, Written)
    assert outcome.version > version
    values = [cluster.read(name, key) for name in "abcd"]
    assert values == ["new"] * 4
    found = cluster.nodes["d"].hit(key, cluster.now_ms)
    assert found is not None
    assert found.version == outcome.version


def test_a_write_in_doubt_behind_a_later_one_is_unknown() -> None:
    cluster, key = about_to_grow()
    op = committed_and_not_told(cluster, key)
    cluster.hold(Ask, source="b")
    cluster.change_ring("abcd")
    cluster.write("c", key, "later")
    cluster.release()
    cluster.after(300)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)
    assert cluster.read("b", key) == "later"


def test_a_commit_told_after_the_home_moved_is_no_copy_to_read() -> None:
    """What the home of before granted is nobody's any more: another may have written since."""
    cluster, key = about_to_grow()
    op = committed_and_not_told(cluster, key)
    cluster.lose(Ask, source="b", target="d")
    cluster.change_ring("abcd")
    cluster.after(300)
    assert cluster.nodes["b"].hit(key, cluster.now_ms) is None
    assert cluster.answer("b", op) is None
    cluster.mend()
    cluster.after(300)
    assert isinstance(cluster.answer("b", op), Written)


def test_a_write_in_doubt_whose_next_home_cannot_read_redis_is_unknown() -> None:
    cluster, key = about_to_grow(Durability.WRITE_THROUGH)
    op = being_written(cluster, key)
    cluster.run()
    cluster.held_redis.clear()
    cluster.redis_down = True
    cluster.hold_redis = lambda _effect: False
    cluster.change_ring("abcd")
    cluster.after(300)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)


def test_a_client_that_goes_while_its_write_is_in_doubt_is_told_so() -> None:
    cluster, key = about_to_grow()
    op = committed_and_not_told(cluster, key)
    cluster.hold(Ask, source="b", target="d")
    cluster.change_ring("abcd")
    waiting = cluster.call_read("b", key)
    cluster.give_up("b", op)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)
    cluster.release()
    cluster.after(300)
    assert cluster.answer("b", waiting) is not None
    assert cluster.read("c", key) == "new"


def test_the_home_of_before_that_dies_leaves_the_write_unknown() -> None:
    cluster, key = about_to_grow()
    op = ask_lost(cluster, key)
    cluster.lose(Report, source="a")
    cluster.change_ring("abcd")
    cluster.crash("a")
    cluster.change_ring("bcd")
    cluster.mend()
    assert cluster.read("c", key) is None
    cluster.after(cluster.options.copy_lease_ms)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)


def test_the_home_of_before_that_cannot_be_heard_leaves_it_unknown_after_one_lease() -> None:
    cluster, key = about_to_grow()
    op = ask_lost(cluster, key)
    cluster.change_ring("abcd")
    cluster.cut("a", "b")
    cluster.after(cluster.options.copy_lease_ms + 50)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)


@pytest.mark.parametrize("way", [ask_lost, committed_and_not_told])
def test_a_home_that_moves_away_and_back_serves_the_write_once(way: Way) -> None:
    cluster, key = about_to_grow()
    op = way(cluster, key)
    cluster.run()
    cluster.lose(Reply, target="b")
    cluster.lose(Ask, source="b")
    cluster.change_ring("abcd")
    cluster.change_ring("abc")
    cluster.mend()
    cluster.after(300)
    assert isinstance(cluster.answer("b", op), Written)
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3
    values = [one.copy.value for one in cluster.redis_log if is_put(one) and one.copy is not None]
    assert values.count(b"new") <= 1


def test_a_write_that_was_in_doubt_is_told_when_one_node_may_die() -> None:
    """Its writer was not told, so its home of before, which is that of now, alone has it."""
    cluster, key = about_to_grow()
    op = committed_and_not_told(cluster, key)
    cluster.hold(Ask, source="b")
    cluster.change_ring("abcd")
    cluster.change_ring("abc")
    cluster.release()
    for _ in range(20):
        if cluster.answer("b", op) is not None:
            break
        cluster.after(20)
    assert isinstance(cluster.answer("b", op), Written)
    cluster.crash("a")
    cluster.change_ring("bc")
    assert [cluster.read(name, key) for name in "bc"] == ["new"] * 2


def test_a_write_under_a_condition_stays_under_it() -> None:
    cluster, key = about_to_grow()
    version = cluster.write("c", key, "old")
    cluster.lose(Ask, source="b", target="a")
    op = cluster.call_write("b", key, "new", if_version=version)
    cluster.hold(Ask, source="b", target="d")
    cluster.change_ring("abcd")
    cluster.mend()
    later = cluster.write("c", key, "later")
    cluster.release()
    cluster.after(300)
    assert cluster.answer("b", op) == Refused(Code.VERSION_MISMATCH, later)


def test_who_hears_of_several_rings_at_once_has_missed_none() -> None:
    """Else it would drop its lines, and wait for the leases that it granted."""
    cluster = Cluster("abc")
    cluster.boot("d")
    key = key_that_moves("a", "a")
    cluster.write("b", key, "kept")
    moves = key_that_moves("a", "d")
    cluster.lose(Ask, source="b", target="a")
    op = cluster.call_write("b", moves, "new")
    cluster.change_ring("abcd", tell="ad", run=False)
    cluster.change_ring("abc", tell="ad", run=False)
    cluster.mend()
    assert cluster.nodes["b"].context.epoch == 1
    cluster.after(500)
    assert cluster.nodes["b"].context.epoch == 3
    for name in "bc":
        cluster.lease(name)
    cluster.after(200)
    assert cluster.state("b", key) == "M"
    assert isinstance(cluster.answer("b", op), Written)


# --- A home that leaves -----------------------------------------------------------------------


def test_a_write_that_comes_to_a_home_that_has_drained_is_made_by_the_next() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.drain("a")
    cluster.after(300)
    assert cluster.retired == ["a"]
    op = cluster.call_write("b", key, "new")
    cluster.after(500)
    assert cluster.answer("b", op) is None
    asked = len([one for one in cluster.sent(Ask) if one.source == cluster.peer("b")])
    assert asked < 5, "it asks again when it is told of another ring, not all the time"
    cluster.change_ring("bc")
    cluster.after(50)
    assert isinstance(cluster.answer("b", op), Written)
    assert cluster.read("c", key) == "new"


@pytest.mark.parametrize("way", [ask_lost, committed_and_not_told])
def test_a_home_that_has_left_still_says_what_became_of_a_write(way: Way) -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.drain("a")
    cluster.after(300)
    cluster.lose(Reply, source="a")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.change_ring("bc")
    cluster.mend()
    cluster.after(300)
    assert isinstance(cluster.answer("b", op), Written)
    assert cluster.read("c", key) == "new"


def test_calls_that_wait_in_a_node_that_retires_are_told_that_nothing_was_done() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.cut("a", "b")
    cluster.after(cluster.options.copy_lease_ms + 50)
    write, read = cluster.call_write("b", key, "new"), cluster.call_read("b", key)
    cluster.drain("b")
    cluster.after(100)
    assert cluster.retired == ["b"]
    assert {cluster.answer("b", op) for op in (write, read)} == {Refused(Code.UNAVAILABLE)}


def test_a_node_retires_when_what_was_in_doubt_is_known() -> None:
    cluster, key = about_to_grow()
    op = committed_and_not_told(cluster, key)
    cluster.change_ring("abcd", run=False)
    for _ in range(100):
        if cluster.nodes["b"].lines.held.lru.get(key).doubt is not None:  # type: ignore[union-attr]
            break
        cluster._deliver_one()
    cluster.cut("b", "d")
    cluster.drain("b")
    cluster.after(300)
    assert not cluster.retired
    cluster.mend()
    cluster.after(1_500)
    assert isinstance(cluster.answer("b", op), Written)
    assert cluster.retired == ["b"]


def test_a_write_that_waits_at_a_home_that_drains_is_made_by_the_next() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    assert cluster.read("c", key) is None
    cluster.lose(Yielded, source="c")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.drain("a")
    cluster.after(100)
    assert cluster.retired == ["a"]
    cluster.change_ring("bc")
    cluster.mend()
    cluster.after(50)
    assert isinstance(cluster.answer("b", op), Written)


def test_who_waits_with_another_that_gives_up_goes_on_when_there_is_a_lease() -> None:
    """A line that waits for a lease goes on waiting as long as anybody does."""
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.cut("a", "b")
    cluster.after(cluster.options.copy_lease_ms + 50)
    first, second = cluster.call_read("b", key), cluster.call_read("b", key)
    cluster.give_up("b", first)
    cluster.mend()
    cluster.after(cluster.options.copy_lease_ms)
    assert isinstance(cluster.answer("b", second), Missing)
    asks = [one.message for one in cluster.sent(Ask) if one.source == cluster.peer("b")]
    assert all(isinstance(ask.wish, AskRead) for ask in asks if isinstance(ask, Ask))
