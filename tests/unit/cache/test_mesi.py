"""The cases of MESI, by name, under every durability; and that reads that hit ask nobody."""

from __future__ import annotations

from typing import Any

import pytest

from distsync_node.cache.messages import Ask, Invalidate, Snoop
from distsync_node.cache.types import Durability, Found, Version
from unit.cache.cluster import Cluster

MODES = list(Durability)


def with_value(mode: Durability, **options: Any) -> tuple[Cluster, str]:
    """A key with home `a` that Redis has and nobody else."""
    cluster = Cluster("abc", durability=Durability.WRITE_THROUGH, **options)
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    known = cluster.redis.keys
    fresh = Cluster("abc", durability=mode, **options)
    fresh.redis.keys = known
    known[key].floor, known[key].version = 0, Version(0, 1)
    return fresh, key


@pytest.mark.parametrize("mode", MODES)
def test_prrd_miss_with_snoop_miss_gives_e(mode: Durability) -> None:
    cluster, key = with_value(mode)
    assert cluster.read("b", key) == "old"
    assert cluster.states(key) == "a:I b:E c:I"
    assert cluster.sent(Snoop) == []


@pytest.mark.parametrize("mode", MODES)
def test_prrd_miss_with_snoop_hit_gives_s_on_both(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.read("b", key)
    assert cluster.read("c", key) == "old"
    assert cluster.states(key) == "a:I b:S c:S"
    assert len(cluster.sent(Snoop)) == 1
    assert cluster.loads(key) == 1, "the owner gave the value"


@pytest.mark.parametrize("mode", MODES)
def test_prrd_miss_with_sharers_reads_redis(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.read("b", key)
    cluster.read("c", key)
    assert cluster.read("a", key) == "old"
    assert cluster.states(key) == "a:S b:S c:S"
    assert cluster.loads(key) == 2


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("state", ["M", "E", "S"])
def test_prrd_hit_asks_nobody(mode: Durability, state: str) -> None:
    cluster, key = with_value(mode)
    if state == "M":
        cluster.write("b", key, "old")
    cluster.read("b", key)
    if state == "S":
        cluster.read("c", key)
    before = len(cluster.log)
    op = cluster.call_read("b", key)
    assert len(cluster.log) == before
    outcome = cluster.answer("b", op)
    assert isinstance(outcome, Found)
    assert outcome.hit


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_prwr_in_e_makes_m_and_invalidates_nobody(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.read("b", key)
    cluster.write("b", key, "new")
    assert cluster.states(key) == "a:I b:M c:I"
    assert cluster.sent(Invalidate) == []


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_prwr_in_m_invalidates_nobody(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.write("b", key, "new")
    cluster.write("b", key, "newer")
    assert cluster.states(key) == "a:I b:M c:I"
    assert cluster.read("b", key) == "newer"
    assert cluster.sent(Invalidate) == []


def test_prwr_in_e_and_m_touches_nothing_but_the_line_under_local_durability() -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.read("b", key)
    messages, calls = len(cluster.log), len(cluster.redis_log)
    first = cluster.write("b", key, "new")
    second = cluster.write("b", key, "newer")
    assert (len(cluster.log), len(cluster.redis_log)) == (messages, calls)
    assert first < second


@pytest.mark.parametrize("mode", MODES)
def test_prwr_in_s_makes_the_others_i(mode: Durability) -> None:
    cluster, key = with_value(mode)
    for name in "abc":
        cluster.read(name, key)
    assert cluster.states(key) == "a:S b:S c:S"
    cluster.write("c", key, "new")
    writer = "E" if mode is Durability.WRITE_THROUGH else "M"
    assert cluster.states(key) == f"a:I b:I c:{writer}"
    assert [cluster.name_of(one.target) for one in cluster.sent(Invalidate)] == ["b"]
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


@pytest.mark.parametrize("mode", MODES)
def test_prwr_in_i_takes_the_line_from_its_owner(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.write("b", key, "first")
    cluster.write("c", key, "second")
    assert cluster.state("b", key) == "I"
    assert [cluster.read(name, key) for name in "abc"] == ["second"] * 3


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_snoop_of_m_shares_the_value_and_writes_it_back(mode: Durability) -> None:
    """At once if nobody else has it; else when nobody has written it for a while."""
    cluster, key = with_value(mode)
    cluster.write("b", key, "new")
    assert cluster.in_redis(key) == "old"
    assert cluster.read("c", key) == "new"
    assert cluster.states(key) == "a:I b:S c:S"
    assert cluster.in_redis(key) == ("new" if mode is Durability.LOCAL else "old")
    cluster.after(1_100)
    assert cluster.in_redis(key) == "new"


def test_a_snooped_value_that_only_its_owner_has_is_shown_when_redis_has_it() -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.write("b", key, "new")
    cluster.hold_redis = lambda effect: getattr(effect, "copy", None) is not None
    op = cluster.call_read("c", key)
    cluster.run()
    assert cluster.answer("c", op) is None
    cluster.hold_redis = lambda _effect: False
    cluster.run()
    outcome = cluster.answer("c", op)
    assert isinstance(outcome, Found)
    assert (outcome.value, cluster.in_redis(key)) == (b"new", "new")


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_lru_eviction_of_m_writes_back_first(mode: Durability) -> None:
    cluster, key = with_value(mode, max_bytes=6_000)
    cluster.write("b", key, "new")
    cluster.hold_redis = lambda effect: getattr(effect, "copy", None) is not None
    others = [one for one in (f"key-{n}" for n in range(200)) if one != key][:8]
    for other in others:
        cluster.read("b", other)
    assert cluster.state("b", key) == "writing-back"
    assert cluster.read("b", key) == "new", "it is served until Redis has it"
    assert cluster.in_redis(key) == "old"
    cluster.hold_redis = lambda _effect: False
    cluster.run()
    assert cluster.state("b", key) == "I"
    assert cluster.in_redis(key) == "new"
    assert cluster.read("c", key) == "new"


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_m_is_written_back_when_nobody_has_written_it_for_a_while_and_stays_as_e(
    mode: Durability,
) -> None:
    cluster, key = with_value(mode)
    cluster.write("b", key, "new")
    cluster.after(900)
    second = cluster.write("b", key, "newer")
    cluster.after(900)
    assert cluster.in_redis(key) == "old", "it is written all the time"
    cluster.after(200)
    assert cluster.in_redis(key) == "newer"
    assert cluster.state("b", key) == "E"
    assert cluster.write("b", key, "newest") > second
    assert cluster.state("b", key) == "M"


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_what_is_written_all_the_time_is_in_redis_within_ten_seconds_all_the_same(
    mode: Durability,
) -> None:
    cluster, key = with_value(mode)
    behind_ms = [0]
    for number in range(60):
        cluster.write("b", key, str(number))
        cluster.after(500)
        is_new = cluster.in_redis(key) == str(number)
        behind_ms.append(0 if is_new else behind_ms[-1] + 500)
    assert 9_000 <= max(behind_ms) <= 10_000
    written = [one for one in cluster.redis_log if getattr(one, "copy", None) is not None]
    assert len(written) <= 4, "and no more often than that"


def test_what_is_written_while_an_idle_line_is_written_back_stays_dirty_until_it_is_too() -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.write("b", key, "new")
    cluster.hold_redis = lambda effect: getattr(effect, "copy", None) is not None
    cluster.after(1_100)
    assert cluster.state("b", key) == "cleaning"
    cluster.write("b", key, "newer")
    cluster.hold_redis = lambda _effect: False
    cluster.run()
    assert (cluster.in_redis(key), cluster.state("b", key)) == ("new", "M")
    cluster.after(1_100)
    assert (cluster.in_redis(key), cluster.state("b", key)) == ("newer", "E")


@pytest.mark.parametrize(("other", "state"), [("read", "S"), ("write", "I")])
def test_a_snoop_or_an_invalidate_of_an_idle_line_that_is_written_back(
    other: str, state: str
) -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.write("b", key, "new")
    cluster.hold_redis = lambda effect: getattr(effect, "copy", None) is not None
    cluster.after(1_100)
    reads = other == "read"
    op = cluster.call_read("c", key) if reads else cluster.call_write("c", key, "newest")
    cluster.hold_redis = lambda _effect: False
    cluster.run()
    assert cluster.answer("c", op) is not None
    assert cluster.state("b", key) == state
    assert cluster.read("b", key) == ("new" if reads else "newest")


def test_an_idle_line_is_written_back_once_redis_serves_again() -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.write("b", key, "new")
    cluster.redis_down = True
    cluster.after(3_000)
    assert cluster.read("b", key) == "new"
    cluster.redis_down = False
    cluster.after(1_500)
    assert (cluster.in_redis(key), cluster.state("b", key)) == ("new", "E")


def test_an_owner_that_dies_when_its_line_was_idle_loses_nothing_under_local_durability() -> None:
    cluster, key = with_value(Durability.LOCAL)
    cluster.write("b", key, "new")
    cluster.after(1_100)
    cluster.crash("b")
    cluster.change_ring("ac")
    cluster.after(2_000)
    assert cluster.read("c", key) == "new"


@pytest.mark.parametrize("way", ["hit", "read"])
def test_what_was_read_last_goes_last(way: str) -> None:
    cluster = Cluster("abc", max_bytes=6_000)
    lines = cluster.nodes["b"].lines.held
    keys = [f"key-{number}" for number in range(10, 99)]
    here: list[str] = []
    while not here or lines.lru.bytes * (len(here) + 1) <= lines.lru.max_bytes * len(here):
        here.append(keys.pop(0))
        cluster.read("b", here[-1])
    oldest, second, *others = here
    if way == "hit":
        assert cluster.nodes["b"].hit(oldest, cluster.now_ms) is not None
    else:
        cluster.read("b", oldest)
    assert lines.evictions == 0
    cluster.read("b", keys[0])
    assert set(lines.lru) == {oldest, *others, keys[0]}
    assert second not in lines.lru


def test_lru_eviction_of_a_clean_line_is_silent_but_for_a_hint() -> None:
    cluster, key = with_value(Durability.MIRRORED, max_bytes=6_000)
    cluster.read("b", key)
    for other in [f"key-{n}" for n in range(200) if f"key-{n}" != key][:8]:
        cluster.read("b", other)
    assert cluster.state("b", key) == "I"
    assert key not in cluster.nodes["a"].home.directory.entries, "the home need not remember it"


@pytest.mark.parametrize("mode", MODES)
def test_a_delete_is_a_write_of_nothing(mode: Durability) -> None:
    cluster, key = with_value(mode)
    cluster.read("b", key)
    cluster.write("c", key, None)
    assert [cluster.read(name, key) for name in "abc"] == [None] * 3


def test_readers_of_one_key_at_a_node_share_one_ask() -> None:
    cluster, key = with_value(Durability.MIRRORED)
    cluster.read("b", cluster.key_at("b"))
    ops = [cluster.call_read("b", key) for _ in range(100)]
    cluster.run()
    assert all(isinstance(cluster.answer("b", op), Found) for op in ops)
    assert len([one for one in cluster.sent(Ask) if one.message.key == key]) == 1
