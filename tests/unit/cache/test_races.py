"""Races between nodes, each by name, with the messages in the order that hurts."""

from __future__ import annotations

import pytest

from distsync_node.cache.events import PeerMessage
from distsync_node.cache.messages import (
    Ask,
    AskWriteBack,
    Invalidate,
    Reply,
    Snoop,
    Yielded,
)
from distsync_node.cache.types import (
    ABSENT,
    Code,
    Durability,
    Found,
    Missing,
    Refused,
    Written,
)
from unit.cache.cluster import Cluster

BOTH = [Durability.MIRRORED, Durability.LOCAL]


def shared_by_all(
    mode: Durability = Durability.MIRRORED, names: str = "abc"
) -> tuple[Cluster, str]:
    """A key with home `a` that all hold in S."""
    cluster = Cluster(names, durability=mode)
    key = cluster.key_at("a")
    for name in names:
        assert cluster.read(name, key) is None
    assert set(cluster.states(key)) & set("SEM") == {"S"}
    return cluster, key


# --- Writers and readers ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Durability))
def test_two_s_holders_writing_at_once_are_ordered_by_the_home(mode: Durability) -> None:
    cluster, key = shared_by_all(mode)
    first = cluster.call_write("b", key, "from b")
    second = cluster.call_write("c", key, "from c")
    cluster.run()
    outcomes = [cluster.answer("b", first), cluster.answer("c", second)]
    assert all(isinstance(outcome, Written) for outcome in outcomes)
    versions = [outcome.version for outcome in outcomes if isinstance(outcome, Written)]
    assert versions[0] != versions[1]
    newest = "from b" if versions[0] > versions[1] else "from c"
    assert [cluster.read(name, key) for name in "abc"] == [newest] * 3


@pytest.mark.parametrize("mode", BOTH)
def test_of_two_s_holders_that_compare_and_set_at_once_one_wins(mode: Durability) -> None:
    cluster, key = shared_by_all(mode)
    first = cluster.call_write("b", key, "from b", if_version=ABSENT)
    second = cluster.call_write("c", key, "from c", if_version=ABSENT)
    cluster.run()
    outcomes = [cluster.answer("b", first), cluster.answer("c", second)]
    assert sum(isinstance(outcome, Written) for outcome in outcomes) == 1
    (refused,) = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
    assert refused.code is Code.VERSION_MISMATCH


def test_a_write_waits_until_each_holder_has_acknowledged() -> None:
    cluster, key = shared_by_all(names="abcd")
    cluster.hold(Yielded, source="d")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.answer("b", op) is None
    assert cluster.states(key) == "a:I b:commit-pending-S c:I d:I"
    cluster.release()
    assert isinstance(cluster.answer("b", op), Written)


def test_a_read_during_commit_pending_waits() -> None:
    cluster, key = shared_by_all()
    cluster.hold(Yielded, source="c")
    write = cluster.call_write("b", key, "new")
    read = cluster.call_read("b", key)
    cluster.run()
    assert cluster.answer("b", read) is None, "neither the old nor the new value"
    cluster.release()
    assert isinstance(cluster.answer("b", write), Written)
    outcome = cluster.answer("b", read)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


def test_a_reader_elsewhere_waits_for_a_commit_under_way() -> None:
    cluster, key = shared_by_all(names="abcd")
    cluster.hold(Yielded, source="c")
    cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.state("d", key) == "I"
    read = cluster.call_read("d", key)
    cluster.run()
    assert cluster.answer("d", read) is None
    cluster.release()
    outcome = cluster.answer("d", read)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


# --- Fills ------------------------------------------------------------------------------------


def test_a_fill_delayed_past_an_invalidate_serves_who_waited_and_is_not_installed() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("c", key, "old")
    cluster.hold(Reply, target="b")
    before = cluster.call_read("b", key)
    cluster.run()
    assert cluster.write("c", key, "new")
    assert cluster.state("b", key) == "filling-invalidated"
    after = cluster.call_read("b", key)
    cluster.release()
    waited, late = cluster.answer("b", before), cluster.answer("b", after)
    assert isinstance(waited, Found)
    assert isinstance(late, Found)
    assert (waited.value, late.value) == (b"old", b"new")
    assert len([one for one in cluster.sent(Ask) if one.message.key == key]) >= 3


def test_a_fill_delayed_past_the_lease_is_refused() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("c", key, "old")
    cluster.hold(Reply, target="b")
    op = cluster.call_read("b", key)
    cluster.run()
    cluster.holds.clear()
    (late,) = [one for one in cluster.held if one.message.key == key]
    cluster.cut("a", "b")
    cluster.after(3_000)
    assert cluster.write("c", key, "new")
    cluster.deliver(late)
    assert cluster.answer("b", op) is None
    assert cluster.state("b", key) == "I"
    cluster.mend()
    cluster.after(500)
    outcome = cluster.answer("b", op)
    assert isinstance(outcome, Found)
    assert outcome.value == b"new"


# --- Grants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", BOTH)
def test_a_lost_grant_is_given_again(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.lose(Reply, target="b")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.answer("b", op) is None
    cluster.mend()
    cluster.after(200)
    assert isinstance(cluster.answer("b", op), Written)
    assert cluster.state("b", key) == "M"
    versions = {
        getattr(one.message.result, "version", None)
        for one in cluster.sent(Reply)
        if one.message.key == key
    }
    assert len(versions) == 1, "one write, however often it was asked for"


def test_an_ask_that_comes_again_after_another_write_is_not_served_again() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    (ask,) = [one for one in cluster.sent(Ask) if one.message.key == key]
    cluster.write("b", key, "second")
    cluster.deliver(ask)
    cluster.run()
    assert [cluster.read(name, key) for name in "abc"] == ["second"] * 3


@pytest.mark.parametrize("mode", BOTH)
def test_a_grant_after_the_time_out_is_refused(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    op = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.give_up("b", op)
    expected = Code.UNKNOWN if mode is Durability.MIRRORED else Code.UNAVAILABLE
    assert cluster.answer("b", op) == Refused(expected)
    cluster.release()
    assert cluster.state("b", key) == "I"
    # Under mirrored the home has committed it, under local nobody has.
    expected_value = "new" if mode is Durability.MIRRORED else None
    assert [cluster.read(name, key) for name in "cab"] == [expected_value] * 3


@pytest.mark.parametrize("mode", BOTH)
@pytest.mark.parametrize("first", ["read", "write"])
def test_an_ask_given_up_and_overtaken_by_the_next_of_its_node_is_not_served(
    first: str, mode: Durability
) -> None:
    cluster = Cluster("abc", durability=mode)
    key = cluster.key_at("a")
    cluster.hold(Ask, source="b")
    cluster.call_read("b", cluster.key_at("c"))  # so that the floor stays below all that follows
    op = cluster.call_read("b", key) if first == "read" else cluster.call_write("b", key, "late")
    cluster.give_up("b", op)
    cluster.holds.clear()
    cluster.write("b", key, "old")
    cluster.deliver(cluster.held[-1])
    cluster.run()
    assert cluster.read("b", key) == cluster.read("a", key)
    cluster.write("c", key, "new")
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_an_upgrade_given_up_keeps_nothing_for_the_home_takes_it_for_the_owner() -> None:
    cluster, key = shared_by_all(Durability.LOCAL)
    cluster.hold(Reply, target="b")
    op = cluster.call_write("b", key, "never")
    cluster.run()
    cluster.give_up("b", op)
    assert cluster.state("b", key) == "I"
    cluster.release()
    cluster.write("c", key, "new")
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


def test_a_snoop_that_overtakes_an_m_grant_tells_the_owner_of_its_commit() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    write = cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.answer("b", write) is None
    assert cluster.read("c", key) == "new"
    assert isinstance(cluster.answer("b", write), Written), "the snoop said so"
    assert cluster.states(key) == "a:I b:S c:S"
    cluster.release()
    assert cluster.states(key) == "a:I b:S c:S", "the grant itself is late"


def test_an_invalidate_that_overtakes_an_m_grant_tells_the_owner_of_its_commit() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    write = cluster.call_write("b", key, "new")
    cluster.run()
    cluster.write("c", key, "newer")
    assert isinstance(cluster.answer("b", write), Written)
    cluster.release()
    assert cluster.states(key) == "a:I b:I c:M"
    assert cluster.read("b", key) == "newer"


def test_a_snoop_that_overtakes_ownership_makes_the_grant_refused() -> None:
    cluster = Cluster("abc", durability=Durability.LOCAL)
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    write = cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.read("c", key) is None
    assert cluster.state("b", key) == "owning-invalidated"
    cluster.release()
    assert isinstance(cluster.answer("b", write), Written), "it asked again"
    assert cluster.read("c", key) == "new"


# --- Invalidations and their answers ----------------------------------------------------------


@pytest.mark.parametrize("kind", [Invalidate, Yielded])
def test_a_lost_invalidate_or_ack_is_sent_again(kind: type) -> None:
    cluster, key = shared_by_all()
    cluster.lose(kind)
    op = cluster.call_write("b", key, "new")
    cluster.run()
    assert cluster.answer("b", op) is None
    cluster.mend()
    cluster.after(200)
    assert isinstance(cluster.answer("b", op), Written)


def test_the_ack_of_an_owner_is_given_again_with_its_value() -> None:
    cluster = Cluster("abc", durability=Durability.LOCAL)
    key = cluster.key_at("a")
    cluster.write("b", key, "only b has it")
    cluster.lose(Yielded)
    op = cluster.call_read("c", key)
    cluster.run()
    cluster.mend()
    cluster.after(200)
    outcome = cluster.answer("c", op)
    assert isinstance(outcome, Found)
    assert outcome.value == b"only b has it"


def test_the_ack_of_an_invalidated_owner_is_given_again_with_its_value() -> None:
    cluster = Cluster("abc", durability=Durability.LOCAL)
    key = cluster.key_at("a")
    version = cluster.write("b", key, "only b has it")
    cluster.lose(Yielded)
    op = cluster.call_write("c", key, "next", if_version=version)
    cluster.run()
    assert cluster.state("b", key) == "I"
    cluster.mend()
    cluster.after(200)
    assert isinstance(cluster.answer("c", op), Written)


@pytest.mark.parametrize("kind", [Invalidate, Snoop])
def test_a_repeated_invalidate_or_snoop_does_not_touch_a_later_grant(kind: type) -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    if kind is Snoop:
        cluster.read("c", key)
    else:
        cluster.write("c", key, "second")
    (repeated,) = cluster.sent(kind)
    cluster.write("b", key, "third")
    cluster.deliver(repeated)
    cluster.run()
    assert cluster.state("b", key) == "M"
    cluster.write("b", key, "fourth")
    assert cluster.read("c", key) == "fourth"


def test_a_repeated_ack_does_not_answer_a_later_transaction() -> None:
    cluster, key = shared_by_all()
    cluster.write("b", key, "new")
    (repeated,) = [one for one in cluster.sent(Yielded) if cluster.name_of(one.source) == "c"]
    cluster.read("c", key)
    cluster.hold(Yielded, source="c")
    op = cluster.call_write("b", key, "newer")
    cluster.run()
    cluster.deliver(repeated)
    cluster.run()
    assert cluster.answer("b", op) is None
    cluster.release()
    assert isinstance(cluster.answer("b", op), Written)


@pytest.mark.parametrize("kind", [Invalidate, Yielded, Ask, Reply])
def test_a_message_replayed_from_an_old_epoch_changes_nothing(kind: type) -> None:
    cluster, key = shared_by_all()
    cluster.write("b", key, "old")
    old = [one for one in cluster.sent(kind) if one.message.key == key]
    assert old
    cluster.change_ring("abc")
    cluster.after(100)
    cluster.write("b", key, "new")
    state = cluster.states(key)
    for one in old:
        cluster.deliver(one)
    cluster.run()
    assert cluster.states(key) == state
    assert [cluster.read(name, key) for name in "abc"] == ["new"] * 3


# --- Evictions --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", BOTH)
def test_an_eviction_racing_a_snoop_loses_nothing(mode: Durability) -> None:
    cluster = Cluster("abc", durability=mode, max_bytes=5_400)
    key = cluster.key_at("a")
    cluster.write("b", key, "dirty")
    cluster.hold(Ask, source="b")
    for number in range(4):
        cluster.call_read("b", f"other-{number}")
    cluster.holds.clear()
    cluster.nodes["b"].lines.write_backs.evict_more()
    cluster.hold(Ask, source="b")
    cluster.step("b", PeerMessage(cluster.peer("c"), cluster.ring.epoch, Yielded(0, 0, "", ABSENT)))
    assert cluster.state("b", key) == "writing-back"
    assert cluster.read("c", key) == "dirty"
    cluster.release()
    evictions = [one for one in cluster.sent(Ask) if isinstance(one.message.wish, AskWriteBack)]
    assert evictions
    assert cluster.read("a", key) == "dirty"
    cluster.after(2_000)
    assert cluster.in_redis(key) == "dirty"


def test_a_local_write_during_its_own_write_back_stays() -> None:
    cluster = Cluster("abc", durability=Durability.LOCAL)
    key = cluster.key_at("a")
    cluster.write("b", key, "first")
    cluster.hold_redis = lambda effect: True
    cluster.nodes["b"].lines.write_backs.evict_more()
    cluster.after(20)
    assert cluster.state("b", key) == "writing-back"
    cluster.write("b", key, "second")
    cluster.hold_redis = lambda effect: False
    cluster.run()
    assert cluster.in_redis(key) == "first"
    assert cluster.state("b", key) == "M"
    assert cluster.read("c", key) == "second"


def test_dirty_bytes_at_the_limit_push_back_without_deadlock() -> None:
    cluster = Cluster("abc", max_dirty_bytes=6_500)
    keys = [f"key-{number}" for number in range(40)]
    cluster.hold_redis = lambda effect: (
        getattr(effect, "mark", None) is None and hasattr(effect, "copy")
    )
    ops = [cluster.call_write("b", key, "x" * 100) for key in keys]
    cluster.run()
    told = [cluster.answer("b", op) for op in ops]
    assert Refused(Code.LIMIT) in told
    assert any(isinstance(outcome, Written) for outcome in told)
    cluster.hold_redis = lambda effect: False
    cluster.run()
    cluster.after(200)
    for key in keys:
        outcome = None
        for _ in range(20):
            op = cluster.call_write("b", key, "y" * 100)
            cluster.run()
            outcome = cluster.answer("b", op)
            if isinstance(outcome, Written):
                break
            cluster.after(20)
        assert isinstance(outcome, Written)
        node = cluster.nodes["b"]
        assert node.lines.held.dirty_bytes <= 6_500
        assert node.home.directory.dirty_bytes <= 6_500


def test_a_home_pushes_back_at_its_own_limit_while_its_writers_are_within_theirs() -> None:
    limit = 6_500
    cluster = Cluster("abc", max_dirty_bytes=limit)
    home_of, home = cluster.nodes["a"].context.home_of, cluster.peer("a")
    keys = [key for key in (f"key-{number}" for number in range(200)) if home_of(key) == home][:24]
    cluster.hold_redis = lambda effect: (
        getattr(effect, "mark", None) is None and hasattr(effect, "copy")
    )
    told = []
    for number, key in enumerate(keys):
        writer = "bc"[number % 2]
        op = cluster.call_write(writer, key, "x" * 100)
        cluster.run()
        told.append(cluster.answer(writer, op))
        assert cluster.nodes[writer].lines.held.dirty_bytes < limit - 1_000
        assert cluster.nodes["a"].home.directory.dirty_bytes <= limit
    assert isinstance(told[0], Written)
    assert told[-1] == Refused(Code.LIMIT)
    assert cluster.nodes["a"].home.directory.dirty_bytes > limit - 1_000
    cluster.hold_redis = lambda effect: False
    cluster.run()
    cluster.after(200)
    for number, key in enumerate(keys):
        cluster.write("bc"[number % 2], key, "y" * 100)
        cluster.after(200)
        assert cluster.nodes["a"].home.directory.dirty_bytes <= limit


def test_a_reader_that_gives_up_leaves_the_others_waiting() -> None:
    cluster = Cluster("abc")
    key = cluster.key_at("a")
    cluster.hold(Reply, target="b")
    first, second = cluster.call_read("b", key), cluster.call_read("b", key)
    cluster.run()
    cluster.give_up("b", first)
    assert cluster.answer("b", first) == Refused(Code.UNAVAILABLE)
    cluster.release()
    assert isinstance(cluster.answer("b", second), Missing)
