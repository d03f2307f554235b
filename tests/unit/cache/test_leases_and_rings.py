"""Leases, changes of the ring, and crashes of owner, home and both."""

from __future__ import annotations

import pytest

from distsync_node.cache.effects import RedisPut
from distsync_node.cache.events import Mark
from distsync_node.cache.kept import Kept
from distsync_node.cache.messages import (
    Cleaned,
    Invalidate,
    Mirror,
    Renew,
    Renewed,
    Reply,
    Report,
    Yielded,
)
from distsync_node.cache.types import (
    Code,
    Copy,
    Durability,
    Found,
    Record,
    Refused,
    Version,
    Written,
)
from unit.cache.cluster import Cluster, Sent, fence

BOTH = [Durability.MIRRORED, Durability.LOCAL]


# --- Copy leases ------------------------------------------------------------------------------


def test_a_holder_that_is_cut_off_from_the_home_alone_delays_a_write_by_one_lease() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.read("c", key)
    cluster.cut("a", "c")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    lasts_ms = cluster.options.copy_lease_ms - 500
    cluster.after(lasts_ms)
    assert cluster.answer("b", op) is None
    cluster.after(cluster.options.granted_ms + 100 - lasts_ms)
    assert isinstance(cluster.answer("b", op), Written)
    assert cluster.state("c", key) == "I"


def test_a_holder_cut_off_in_one_direction_delays_a_write_by_one_lease() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.read("c", key)
    cluster.lose(Invalidate, target="c")  # everything else goes through, renewals too
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.after(cluster.options.granted_ms + 100)
    assert isinstance(cluster.answer("b", op), Written)


def test_a_holder_stops_serving_before_the_home_goes_on() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    cluster.read("c", key)
    cluster.cut("a", "c")
    op = cluster.call_write("b", key, "new")
    while cluster.answer("b", op) is None:
        served = cluster.nodes["c"].hit(key, cluster.now_ms) is not None
        cluster.after(1)
    assert not served or cluster.nodes["c"].hit(key, cluster.now_ms) is None
    assert cluster.nodes["c"].hit(key, cluster.now_ms) is None


def test_a_node_that_was_stopped_past_its_leases_serves_nothing_that_was_queued() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    cluster.read("c", key)
    cluster.paused.add("c")
    op = cluster.call_write("b", key, "new")
    cluster.after(cluster.options.granted_ms + 100)
    assert isinstance(cluster.answer("b", op), Written)
    read = cluster.call_read("c", key)  # the first thing it does when it goes on
    assert cluster.answer("c", read) is None
    cluster.paused.clear()
    cluster.after(200)
    outcome = cluster.answer("c", read)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


def test_a_lapsed_lease_is_not_revived_by_a_late_answer() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.read("b", key)
    cluster.hold(Renewed, source="a", target="b")
    cluster.after(600)
    assert cluster.state("b", key) == "E"
    late = [one for one in cluster.held if one.message.lease]
    cluster.holds.clear()
    cluster.cut("a", "b")
    cluster.after(cluster.options.copy_lease_ms)
    cluster.deliver(late[-1])
    assert cluster.state("b", key) == "I"
    assert not cluster.nodes["b"].lines.held.leases[cluster.peer("a")].number


def test_a_new_lease_has_a_new_number_and_starts_empty() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.read("b", key)
    before = cluster.nodes["b"].lines.held.leases[cluster.peer("a")].number
    cluster.cut("a", "b")
    cluster.after(3_000)
    cluster.mend()
    cluster.after(300)
    lease = cluster.nodes["b"].lines.held.leases[cluster.peer("a")]
    assert lease.number > before
    assert lease.is_valid(cluster.now_ms)
    assert cluster.state("b", key) == "I"


def test_a_request_for_a_lease_that_comes_again_does_not_end_the_lease_it_made() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    (first, *_) = [
        one
        for one in cluster.sent(Renew)
        if (cluster.name_of(one.source), cluster.name_of(one.target)) == ("b", "a")
    ]
    assert first.message.lease == 0
    cluster.read("b", key)
    cluster.deliver(first)
    cluster.run()
    assert cluster.state("b", key) == "E"
    assert cluster.nodes["a"].home.directory.entries[key].owner == cluster.peer("b")


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_a_lease_is_not_renewed_while_an_invalidate_is_unacknowledged(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.read("c", key)
    cluster.lose(Yielded, source="c")
    cluster.call_write("b", key, "new")
    cluster.run()
    before = len(cluster.log)
    cluster.after(1_000)
    answers = [
        one.message.lease_ms
        for one in cluster.log[before:]
        if isinstance(one.message, Renewed) and cluster.name_of(one.target) == "c"
        if cluster.name_of(one.source) == "a"
    ]
    assert answers
    assert set(answers) == {0}


def test_an_owner_that_loses_its_lease_under_local_goes_back_to_what_redis_has() -> None:
    cluster = Cluster("abc", durability=Durability.LOCAL)
    key = cluster.key_at("a")
    cluster.write("b", key, "written back")
    cluster.read("c", key)
    cluster.write("b", key, "only in b")
    cluster.cut("a", "b")
    cluster.after(3_000)
    assert cluster.read("c", key) == "written back"
    assert [one.key for one in cluster.dropped] == [key]


def test_an_owner_that_loses_its_lease_under_mirrored_loses_nothing() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "mirrored")
    cluster.cut("a", "b")
    cluster.after(3_000)
    assert cluster.read("c", key) == "mirrored"
    assert cluster.dropped == []


# --- Node leases ------------------------------------------------------------------------------


def test_a_minority_that_has_both_owner_and_home_serves_nothing() -> None:
    cluster = Cluster("abcde")
    key = cluster.key_at("a", then="c", without="ab")
    cluster.write("b", key, "old")
    for name in "ab":
        for other in "cde":
            cluster.cut(name, other)
        cluster.leases[name] = cluster.now_ms + 500
        cluster.lease(name)
    cluster.after(600)
    read, write = cluster.call_read("b", key), cluster.call_write("b", key, "new")
    cluster.after(200)
    assert (cluster.answer("b", read), cluster.answer("b", write)) == (None, None)
    cluster.change_ring("cde", tell="cde")
    cluster.after(300)
    # Both places of the value are cut off: what Redis has is older, and is not served.
    op = cluster.call_read("c", key)
    cluster.run()
    assert cluster.answer("c", op) == Refused(Code.LINE_LOST)
    cluster.write("d", key, "next")
    assert cluster.read("e", key) == "next"
    cluster.give_up("b", write)
    assert cluster.answer("b", write) in (Refused(Code.UNKNOWN), Refused(Code.UNAVAILABLE))


def test_a_home_without_its_node_lease_does_not_even_refuse() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    version = cluster.write("b", key, "old")
    cluster.write("b", key, "new")
    cluster.leases["a"] = cluster.now_ms
    cluster.lease("a")
    op = cluster.call_write("b", key, "newer", if_version=version)
    cluster.run()
    assert cluster.answer("b", op) is None
    del cluster.leases["a"]
    cluster.lease("a")
    cluster.run()
    outcome = cluster.answer("b", op)
    assert isinstance(outcome, Refused)
    assert outcome.code is Code.VERSION_MISMATCH


@pytest.mark.parametrize("waits", [True, False])
def test_a_write_that_redis_did_and_refused_when_it_came_again_is_not_said_to_be_undone(
    waits: bool,
) -> None:
    """Its answer was lost, and before it was sent again another home had read the key."""
    cluster = Cluster("abc", durability=Durability.WRITE_THROUGH)
    key = cluster.key_at("a")
    cluster.read("a", key)
    cluster.hold_redis = lambda effect: isinstance(effect, RedisPut)
    op = cluster.call_write("a", key, "new")
    cluster.run()
    ((_, effect),) = cluster.held_redis
    cluster.redis.apply(effect)
    for other in "bc":
        cluster.cut("a", other)
    cluster.leases["a"] = cluster.now_ms
    cluster.lease("a")
    cluster.change_ring("bc", tell="bc")
    assert cluster.read("b", key) == "new"
    cluster.hold_redis = lambda _effect: False
    cluster.run()
    assert cluster.answer("a", op) is None
    cluster.adopt("a")
    cluster.after(200)
    assert cluster.answer("a", op) is None, "out of the ring it cannot learn what became of it"
    if waits:
        cluster.mend()
        cluster.leases.clear()
        cluster.change_ring("abc")
        cluster.after(cluster.options.granted_ms + 200)
        assert isinstance(cluster.answer("a", op), Written)
        assert cluster.read("c", key) == "new"
    else:
        cluster.give_up("a", op)
        assert cluster.answer("a", op) == Refused(Code.UNKNOWN)


# --- Crashes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before commit", "between commit and response", "after the ack"])
def test_owner_dead(when: str) -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("c", key, "old")
    if when == "before commit":
        cluster.hold(Yielded, source="c")
    elif when == "between commit and response":
        cluster.hold(Reply, target="b")
    cluster.call_write("b", key, "new")
    cluster.run()
    cluster.crash("b")
    cluster.release()
    cluster.after(cluster.options.granted_ms + 200)
    # With its client unanswered either value would do; what was acknowledged must be there.
    assert cluster.read("c", key) == "new"
    assert cluster.read("a", key) == "new"


def test_owner_dead_is_taken_out_of_the_ring_and_the_key_served_at_once() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "new")
    cluster.crash("b")
    cluster.change_ring("ac")
    assert cluster.read("c", key) == "new"


@pytest.mark.parametrize("mode", BOTH)
def test_home_dead_and_the_owner_reports_its_line(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.change_ring("bc")
    cluster.after(50)
    assert cluster.state("b", key) == "I"
    assert cluster.read("c", key) == "new"
    assert cluster.read("b", key) == "new"


def test_home_dead_that_owned_the_line_itself() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("a", key, "at its home")
    assert cluster.in_redis(key) is None
    cluster.crash("a")
    cluster.change_ring("bc")
    assert [cluster.read(name, key) for name in "bc"] == ["at its home"] * 2


def test_home_dead_between_mark_and_commit_is_no_loss() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "old")
    cluster.after(2_000)
    assert not cluster.is_marked(key)
    cluster.lose(Reply, source="a")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.crash("a")
    assert cluster.is_marked(key)
    cluster.mend()
    cluster.change_ring("bc")
    cluster.after(cluster.options.copy_lease_ms)
    assert cluster.answer("b", op) == Refused(Code.UNKNOWN)
    assert cluster.read("c", key) == "old", "b, one of its places, is here and has nothing newer"


def test_home_restarted_inside_its_lease_is_another_process() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.boot("a")
    op = cluster.call_read("c", key)
    cluster.after(300)
    assert cluster.answer("c", op) is None, "the ring still names the process that died"
    cluster.change_ring("abc")
    cluster.after(50)
    outcome = cluster.answer("c", op)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


def test_second_crash_before_re_mirroring_says_line_lost_until_the_next_put() -> None:
    cluster = Cluster("abcd")
    key = cluster.key_at("a", then="c", without="ab")
    cluster.write("b", key, "old")
    cluster.after(2_000)
    assert cluster.in_redis(key) == "old"
    version = cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.crash("b")
    cluster.change_ring("cd")
    op = cluster.call_read("d", key)
    cluster.run()
    assert cluster.answer("d", op) == Refused(Code.LINE_LOST)
    assert cluster.refused("d", key, "x", if_version=version).code is Code.LINE_LOST
    cluster.write("d", key, "next")
    assert [cluster.read(name, key) for name in "cd"] == ["next"] * 2
    assert not cluster.is_marked(key)


@pytest.mark.parametrize("value", ["next", None])
def test_a_lost_line_takes_a_write_only_with_a_token_that_was_verified(value: str | None) -> None:
    cluster = Cluster("abcd")
    key = cluster.key_at("a", then="c", without="ab")
    cluster.write("b", key, "old", fence=fence("lock", 5))
    cluster.after(2_000)
    cluster.write("b", key, "new", fence=fence("lock", 7))
    cluster.crash("a")
    cluster.crash("b")
    cluster.change_ring("cd")
    assert cluster.refused("d", key, value, fence=fence("lock", 4)).code is Code.FENCED
    for token in (5, 6, 7):
        unverified = fence("lock", token, verified=False)
        assert cluster.refused("d", key, value, fence=unverified).code is Code.FENCE_UNVERIFIED
    cluster.write("d", key, value, fence=fence("lock", 7))
    assert cluster.read("c", key) == value
    assert cluster.refused("c", key, "x", fence=fence("lock", 6)).code is Code.FENCED


def test_a_lost_line_may_be_deleted() -> None:
    cluster = Cluster("abcd")
    key = cluster.key_at("a", then="c", without="ab")
    cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.crash("b")
    cluster.change_ring("cd")
    cluster.write("c", key, None)
    assert cluster.read("d", key) is None


def test_a_stale_mirror_is_not_taken_for_the_newest_value() -> None:
    cluster = Cluster("abcd")
    key = cluster.key_at("a")
    second = cluster.nodes["a"].context.successor_of(key)
    assert second is not None
    mirror = cluster.name_of(second)
    owner = next(name for name in "bcd" if name != mirror)
    cluster.lose(Cleaned)
    cluster.write("a", key, "old")
    assert cluster.nodes[mirror].kept.get(key) is not None
    cluster.write(owner, key, "new")
    cluster.crash("a")
    cluster.crash(owner)
    rest = "".join(sorted(set("bcd") - {owner}))
    cluster.change_ring(rest)
    op = cluster.call_read(rest[0], key)
    cluster.run()
    assert cluster.answer(rest[0], op) == Refused(Code.LINE_LOST)


# --- Changes of the ring ----------------------------------------------------------------------


def test_a_new_home_waits_for_the_report_of_every_process() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.hold(Report, source="b")
    cluster.change_ring("bc")
    op = cluster.call_read("c", key)
    cluster.run()
    assert cluster.answer("c", op) is None
    cluster.release()
    outcome = cluster.answer("c", op)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


def test_recovery_does_not_begin_before_the_leases_of_those_who_left_have_ended() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.read("b", key)
    cluster.change_ring("bc", tell="bc", left_have_ended=False)
    op = cluster.call_write("c", key, "new")
    cluster.after(cluster.options.node_lease_granted_ms - 100)
    assert cluster.answer("c", op) is None
    cluster.after(200)
    assert isinstance(cluster.answer("c", op), Written)


def test_it_may_become_certain_later_that_those_who_left_have_ended() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.change_ring("bc", tell="bc", left_have_ended=False)
    op = cluster.call_write("c", key, "new")
    cluster.after(100)
    assert cluster.answer("c", op) is None
    for name in "bc":
        cluster.adopt(name)
    cluster.run()
    assert isinstance(cluster.answer("c", op), Written)


def test_a_node_that_joins_takes_its_keys_with_their_values() -> None:
    cluster = Cluster("abc")
    cluster.boot("d")
    keys = [f"key-{number}" for number in range(60)]
    for key in keys:
        cluster.write("b", key, f"value of {key}")
    cluster.change_ring("abcd")
    cluster.after(50)
    moved = [key for key in keys if cluster.ring.ring().owner(key) == "d"]
    assert moved
    assert [cluster.read("a", key) for key in keys] == [f"value of {key}" for key in keys]
    assert [cluster.read("d", key) for key in moved] == [f"value of {key}" for key in moved]


def test_3_to_5_to_3_nodes_keep_every_value() -> None:
    cluster = Cluster("abc")
    keys = [f"key-{number}" for number in range(40)]
    for names in ("abcd", "abcde", "abce", "abc"):
        for index, key in enumerate(keys):
            writer = cluster.ring.servers[index % len(cluster.ring.servers)].name
            cluster.write(writer, key, f"{names} {key}")
        for name in set(names) - cluster.nodes.keys():
            cluster.boot(name)
        leaving = {server.name for server in cluster.ring.servers} - set(names)
        for name in leaving:
            cluster.drain(name)
            cluster.after(200)
            assert name in cluster.retired
        cluster.change_ring(names)
        cluster.after(50)
        assert [cluster.read(names[0], key) for key in keys] == [f"{names} {key}" for key in keys]
        for name in leaving:
            cluster.crash(name)


def test_a_line_whose_home_stays_is_served_through_a_change_of_the_ring() -> None:
    cluster = Cluster("abc")
    cluster.boot("d")
    key = next(
        f"key-{number}"
        for number in range(200)
        if cluster.ring.ring().owner(f"key-{number}") == "a"
        and _ring_with(cluster, "abcd").owner(f"key-{number}") == "a"
    )
    cluster.write("b", key, "kept")
    cluster.change_ring("abcd")
    assert cluster.state("b", key) == "M"
    assert cluster.nodes["b"].hit(key, cluster.now_ms) is not None


def _ring_with(cluster: Cluster, names: str):  # type: ignore[no-untyped-def]
    from distsync_node.ring import HashRing

    return HashRing(dict.fromkeys(names, 1.0))


def test_a_node_that_has_skipped_an_epoch_keeps_no_line() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "kept")
    cluster.read("c", key)
    cluster.change_ring("abc", tell="a", run=False)
    cluster.change_ring("abc", tell="abc")
    cluster.after(100)
    assert cluster.state("c", key) == "I"
    assert [cluster.read(name, key) for name in "abc"] == ["kept"] * 3


def test_a_home_that_has_skipped_an_epoch_waits_for_the_copy_leases_it_granted() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    cluster.change_ring("abc", tell="bc", run=False)
    cluster.change_ring("abc", tell="abc")
    assert cluster.state("b", key) == "M", "it has seen every ring, and its home never changed"
    lost = cluster.call_write("c", key, "under a lease that the home has forgotten")
    cluster.after(500)
    assert cluster.answer("c", lost) == Refused(Code.UNKNOWN)
    op = cluster.call_write("c", key, "new")
    cluster.after(cluster.options.granted_ms - 800)
    assert cluster.answer("c", op) is None
    cluster.after(1_000)
    assert isinstance(cluster.answer("c", op), Written)
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_a_home_that_has_skipped_an_epoch_serves_at_once_if_nobody_holds_a_line_of_it() -> None:
    cluster = Cluster("abc")
    cluster.after(100)
    assert len(cluster.nodes["a"].home.directory.leases.by_holder) == 3
    cluster.change_ring("abc", tell="bc", run=False)
    cluster.change_ring("abc", tell="abc")
    assert cluster.nodes["a"].handover.is_complete
    cluster.after(10)
    key = cluster.key_at("a")
    cluster.write("a", key, "new")
    assert not cluster.nodes["a"].is_at_work
    cluster.after(cluster.options.renew_ms)  # until others know that their leases are forgotten
    assert cluster.nodes["a"].is_at_work
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_a_report_in_many_parts_counts_when_all_have_come() -> None:
    cluster = Cluster("abc", report_bytes=20)
    keys = [f"key-{number}" for number in range(30)]
    for key in keys:
        cluster.write("b", key, f"value of {key}")
    cluster.crash("a")
    cluster.change_ring("bc")
    assert max(one.message.parts for one in cluster.sent(Report)) > 2
    assert [cluster.read("c", key) for key in keys] == [f"value of {key}" for key in keys]


def test_a_drained_node_has_everything_in_redis_and_serves_nothing_any_more() -> None:
    cluster = Cluster("abc")
    keys = [f"key-{number}" for number in range(30)]
    for key in keys:
        cluster.write("b", key, f"value of {key}")
    cluster.drain("b")
    cluster.after(200)
    assert cluster.retired == ["b"]
    assert [cluster.in_redis(key) for key in keys if cluster.ring.ring().owner(key) == "b"]
    op = cluster.call_read("b", keys[0])
    assert cluster.answer("b", op) == Refused(Code.UNAVAILABLE)
    cluster.change_ring("ac", tell="ac")
    cluster.crash("b")
    assert [cluster.read("c", key) for key in keys] == [f"value of {key}" for key in keys]


def test_messages_of_a_newer_epoch_wait_until_the_ring_is_known_here() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    cluster.change_ring("abc", tell="b")
    op = cluster.call_read("b", key)
    cluster.run()
    for name in "ac":
        assert cluster.nodes[name].context.epoch == 2, "a node told it"
        cluster.lease(name)
    cluster.after(400)
    outcome = cluster.answer("b", op)
    assert isinstance(outcome, Found)
    assert outcome.value == b"old"


# --- Marks ------------------------------------------------------------------------------------


def test_a_mark_names_the_first_write_and_both_places() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    version = cluster.write("b", key, "first")
    cluster.write("b", key, "second")
    places = tuple(sorted((cluster.peer("a"), cluster.peer("b"))))
    assert cluster.redis.keys[key].mark == Mark(version, places)


def test_a_rewrite_of_a_dirty_line_does_not_go_to_redis() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    calls = len(cluster.redis_log)
    cluster.write("b", key, "second")
    assert len(cluster.redis_log) == calls


@pytest.mark.parametrize("successor", ["silent", "missing", "leaves"])
def test_redis_takes_the_place_of_a_successor_that_keeps_no_copy(successor: str) -> None:
    """A home that writes its own key has nobody else to leave it with."""
    cluster = Cluster("a" if successor == "missing" else "abc")
    key = cluster.key_at("a", then="" if successor == "missing" else "c", without="a")
    if successor == "silent":
        cluster.lose(Mirror)
    elif successor == "leaves":
        cluster.write("c", "other", "dirty")
        cluster.hold_redis = lambda effect: effect.key == "other"
        cluster.drain("c")
        assert cluster.retired == []
    op = cluster.call_write("a", key, "new")
    cluster.run()
    if successor == "silent":
        assert cluster.answer("a", op) is None
        cluster.after(cluster.options.mirror_wait_ms - 20)
        assert cluster.answer("a", op) is None, "it may answer yet"
        cluster.after(40)
    assert isinstance(cluster.answer("a", op), Written)
    assert cluster.in_redis(key) == "new"
    assert not cluster.is_marked(key)


def test_another_owner_is_another_generation() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    version = cluster.write("c", key, "second")
    assert cluster.in_redis(key) == "first", "written in the step that set the next mark"
    mark = cluster.redis.keys[key].mark
    assert mark is not None
    assert mark.version == version


def test_a_write_during_a_write_back_sets_the_next_generation_first() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    cluster.hold_redis = lambda effect: True
    cluster.after(1_100)
    op = cluster.call_write("b", key, "second")
    cluster.run()
    assert cluster.answer("b", op) is None
    cluster.hold_redis = lambda effect: False
    cluster.run()
    outcome = cluster.answer("b", op)
    assert isinstance(outcome, Written)
    assert cluster.in_redis(key) == "first"
    mark = cluster.redis.keys[key].mark
    assert mark is not None
    assert mark.version == outcome.version


def test_that_wait_outlasts_a_further_ring_that_is_not_skipped() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.read("b", key)
    cluster.change_ring("abc", tell="bc", run=False)
    cluster.change_ring("abc", run=False)
    cluster.change_ring("abc")
    assert cluster.state("b", key) == "E"
    cluster.after(500)
    op = cluster.call_write("c", key, "new")
    cluster.after(cluster.options.granted_ms - 800)
    assert cluster.answer("c", op) is None
    cluster.after(1_000)
    assert isinstance(cluster.answer("c", op), Written)


def test_a_home_that_only_read_the_key_before_it_died_loses_nothing_of_its_last_owner() -> None:
    cluster = Cluster("abcd", durability=Durability.LOCAL)
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "new")
    cluster.crash("a")
    cluster.hold_redis = lambda effect: isinstance(effect, RedisPut)
    cluster.change_ring("bcd")
    assert cluster.redis.keys[key].floor == cluster.ring.epoch, "the next home has read it"
    cluster.crash("c")
    cluster.hold_redis = lambda _effect: False
    cluster.change_ring("bd")
    assert [cluster.read(name, key) for name in "bd"] == ["new"] * 2


@pytest.mark.parametrize("mode", [Durability.MIRRORED, Durability.LOCAL])
def test_a_copy_reported_beside_the_epoch_takes_the_line_from_nobody(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.write("b", key, "old")
    stale = Copy(Version(cluster.ring.epoch, 1 << 40), b"stale")
    unmarked = (key,) if mode is Durability.LOCAL else ()
    report = Report(0, 0, ((key, stale),), unmarked)
    cluster.deliver(Sent(cluster.peer("b"), cluster.peer("a"), cluster.ring.epoch, report))
    cluster.run()
    cluster.write("c", key, "new")
    assert cluster.state("b", key) == "I"
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_a_copy_that_never_took_effect_is_dropped_by_its_keeper() -> None:
    cluster = Cluster("abc", durability=Durability.WRITE_THROUGH)
    key = cluster.key_at("a")
    cluster.write("a", key, "old")
    kept = Kept(
        record=Record(Version(cluster.ring.epoch, 1 << 40), b"stale"), since_ms=cluster.now_ms
    )
    cluster.nodes["b"].kept.keep(key, kept)
    cluster.after(11_000)
    assert cluster.nodes["b"].kept.get(key) is None
    assert [cluster.read(name, key) for name in "abc"] == ["old"] * 3


def test_a_node_that_missed_an_epoch_forgets_what_it_kept_under_local_durability() -> None:
    cluster = Cluster("abcd", durability=Durability.LOCAL)
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "lost")
    cluster.crash("a")
    cluster.change_ring("bcd", tell="b", run=False)
    cluster.change_ring("cd", tell="cd")  # `b` is out
    cluster.after(2_100)
    assert cluster.read("d", key) is None, "its home goes on with what Redis has"
    cluster.change_ring("bcd")
    assert [one.key for one in cluster.dropped] == [key]
    cluster.after(300)
    assert [cluster.read(name, key) for name in "bcd"] == [None] * 3


# --- What Redis has forgotten ------------------------------------------------------------------


def test_what_was_deleted_does_not_come_back_with_who_kept_it() -> None:
    cluster = Cluster("abc", grace_ms=5_000)
    key = cluster.key_at("a")
    cluster.write("c", key, "old")
    cluster.paused.add("c")
    cluster.change_ring("ab", tell="ab")
    cluster.write("b", key, None)
    cluster.after(8_000)
    cluster.crash("a")
    cluster.boot("a")
    cluster.paused.clear()
    cluster.change_ring("abc")
    cluster.after(200)
    assert key in cluster.redis.forgot
    assert [cluster.read(name, key) for name in "abc"] == [None] * 3
    cluster.after(6_000)
    assert cluster.nodes["c"].kept.get(key) is None


def test_a_home_that_was_stopped_writes_nothing_back_that_was_deleted_and_forgotten_since() -> None:
    cluster = Cluster("abc", grace_ms=5_000)
    key = cluster.key_at("a", then="b", without="a")
    cluster.write("a", key, "old")
    cluster.leases["a"] = cluster.now_ms + 500
    cluster.lease("a")
    cluster.paused.add("a")
    cluster.change_ring("bc", tell="bc")
    cluster.write("c", key, None)
    cluster.after(8_000)
    cluster.paused.clear()
    before = len(cluster.redis_log)
    cluster.after(500)
    assert any(isinstance(effect, RedisPut) for effect in cluster.redis_log[before:])
    assert key in cluster.redis.forgot
    assert cluster.in_redis(key) is None


@pytest.mark.parametrize("mode", list(Durability))
def test_a_home_that_was_stopped_begins_nothing_with_a_key_that_was_forgotten_since(
    mode: Durability,
) -> None:
    """To read it would make this the last home that Redis knows of."""
    cluster = Cluster("abc", grace_ms=5_000, durability=mode)
    key = cluster.key_at("a", then="b", without="a")
    cluster.leases["a"] = cluster.now_ms + 500
    cluster.lease("a")
    cluster.paused.add("a")
    cluster.change_ring("bc", tell="bc")
    cluster.write("c", key, "new")
    cluster.write("c", key, None)
    cluster.after(8_000)
    cluster.paused.clear()
    cluster.cut("a", "b")
    cluster.cut("a", "c")
    write = cluster.call_write("a", key, "of an old epoch")
    cluster.after(500)
    assert cluster.in_redis(key) is None
    assert cluster.read("c", key) is None
    assert cluster.answer("a", write) is None


@pytest.mark.parametrize("mode", list(Durability))
def test_a_home_that_serves_goes_on_with_a_key_that_redis_has_forgotten(mode: Durability) -> None:
    cluster = Cluster("abc", grace_ms=1_000, durability=mode)
    key = cluster.key_at("a")
    deleted = cluster.write("b", key, None)
    cluster.after(4_000)
    assert cluster.read("c", key) is None
    assert cluster.write("c", key, "new", if_version=deleted) > deleted
    cluster.after(2_000)
    assert key in cluster.redis.forgot
    assert cluster.in_redis(key) == "new"
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


# --- When another node may die -----------------------------------------------------------------


def test_a_mark_of_a_write_never_made_ends_when_its_last_witness_has_said_so() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("b", key, "old")
    cluster.after(2_000)
    cluster.lose(Reply, source="a")
    cluster.call_write("b", key, "never made")
    cluster.run()
    cluster.crash("a")
    cluster.mend()
    cluster.change_ring("bc")
    cluster.hold_redis = lambda effect: isinstance(effect, RedisPut)
    assert cluster.read("c", key) == "old", "b, one of its places, has nothing newer"
    assert not cluster.nodes["c"].is_settled, "b is the only one who knows"
    cluster.hold_redis = lambda _effect: False
    cluster.after(20)
    assert cluster.nodes["c"].is_settled
    assert not cluster.is_marked(key)
    cluster.crash("b")
    cluster.change_ring("c")
    assert cluster.read("c", key) == "old"


def test_a_node_is_settled_once_it_has_taken_over_and_what_was_in_one_place_is_in_redis() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a", then="c", without="a")
    cluster.write("c", key, "new")
    assert all(cluster.nodes[name].is_settled for name in "abc")
    cluster.crash("a")
    cluster.lose(Report, source="b")
    cluster.change_ring("bc")
    assert not cluster.nodes["c"].is_settled, "it is the home now, and has not taken over"
    cluster.hold_redis = lambda _effect: True
    cluster.mend()
    cluster.after(500)
    assert cluster.nodes["c"].handover.is_complete
    assert not cluster.nodes["c"].is_settled, "the value is here alone"
    cluster.hold_redis = lambda _effect: False
    cluster.after(500)
    assert cluster.nodes["c"].is_settled
    assert cluster.in_redis(key) == "new"


def test_a_home_whose_mirror_left_the_ring_is_settled_when_redis_has_the_value() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "new")
    cluster.crash("b")
    cluster.hold_redis = lambda _effect: True
    cluster.change_ring("ac")
    cluster.after(100)
    assert cluster.nodes["a"].handover.is_complete
    assert not cluster.nodes["a"].is_settled
    cluster.hold_redis = lambda _effect: False
    cluster.after(100)
    assert cluster.nodes["a"].is_settled
    assert cluster.in_redis(key) == "new"
