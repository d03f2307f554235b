"""A drain writes back some at a time: no event costs more because there is much to be written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from distsync_node.cache.effects import Answer, Effect, RedisLoad, RedisPut, Retired
from distsync_node.cache.events import (
    ClientRead,
    ClientWrite,
    Drain,
    Event,
    Loaded,
    NodeLease,
    RedisFailed,
    RingAdopted,
    Stored,
    Tick,
)
from distsync_node.cache.invariants import check_node
from distsync_node.cache.messages import Report
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import (
    ABSENT,
    Change,
    Code,
    Copy,
    Durability,
    OpId,
    Refused,
    Written,
)
from distsync_node.cluster.ring_state import Epoch, Incarnation, RingState, Server
from distsync_node.raft.types import MemberId
from unit.cache.cluster import Cluster

NOW_MS = 1_000
LINES = 10_000
DIRTY = 1_000
AT_ONCE = 8
MOST_WORK = 5_000
"""Lines of Python in one step: enough for a few write-backs, too few for a look at all lines."""


class Alone:
    """A node that owns all lines and is their home, with a Redis that answers when it is told."""

    def __init__(self, **options: Any) -> None:
        server = Server("a", MemberId("m-a"), Incarnation(1))
        self.node = CacheNode(
            server,
            CacheOptions(
                durability=Durability.LOCAL,
                max_bytes=1 << 30,
                write_backs_at_once=AT_ONCE,
                **options,
            ),
        )
        self.asked: list[RedisLoad | RedisPut] = []
        self.outcomes: list[Any] = []
        self.retired = False
        self._last_op = 0
        self.step(RingAdopted(RingState(Epoch(1), (server,)), left_have_ended=True))
        self.step(NodeLease(Epoch(1), 1 << 40))
        self.step(Tick())

    def step(self, event: Event) -> list[Effect]:
        """Take an event, and keep what is asked of Redis."""
        effects = self.node.step(event, NOW_MS)
        self.asked += [one for one in effects if isinstance(one, RedisLoad | RedisPut)]
        self.outcomes += [one.outcome for one in effects if isinstance(one, Answer)]
        self.retired = self.retired or any(isinstance(one, Retired) for one in effects)
        return effects

    def answer_one(self) -> list[Effect]:
        """Redis carries out what was asked first."""
        effect = self.asked.pop(0)
        if isinstance(effect, RedisLoad):
            return self.step(Loaded(effect.request, Copy(ABSENT, None), None))
        return self.step(Stored(effect.request))

    def fill(self, lines: int, dirty: int) -> None:
        """Hold so many lines, and write to some of them."""
        for number in range(lines):
            self.step(ClientRead(self._op(), f"key-{number}"))
            self.answer_one()
        for number in range(dirty):
            self.write(f"key-{number}")

    def write(self, key: str) -> Written | Refused:
        """Write what is owned here."""
        self.step(ClientWrite(self._op(), key, Change(b"value")))
        outcome = self.outcomes.pop()
        assert isinstance(outcome, Written | Refused)
        return outcome

    def _op(self) -> OpId:
        self._last_op += 1
        return OpId(self._last_op)


def work_of(action: Callable[[], object]) -> int:
    """Return how many lines of Python an action runs, each turn of a loop counted."""
    count = 0

    def trace(_frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return count


def test_a_drain_never_looks_at_all_lines_in_one_step() -> None:
    alone = Alone()
    alone.fill(LINES, DIRTY)
    assert work_of(lambda: alone.step(Drain())) < MOST_WORK
    steps = 0
    while not alone.retired:
        assert 0 < len(alone.asked) <= AT_ONCE
        if steps % 100 == 0:
            assert work_of(alone.answer_one) < MOST_WORK
            check_node(alone.node)
        else:
            alone.answer_one()
        steps += 1
    assert steps == DIRTY
    assert (alone.node.unwritten_bytes, alone.node.dirty_since_ms(NOW_MS)) == (0, NOW_MS)


def test_a_drain_goes_on_when_redis_has_failed() -> None:
    alone = Alone()
    alone.fill(50, 50)
    alone.step(Drain())
    for effect in alone.asked:
        alone.node.step(RedisFailed(effect.request), NOW_MS)
    alone.asked.clear()
    for later_ms in range(NOW_MS, NOW_MS + 10_000, 100):
        effects = alone.node.step(Tick(), later_ms)
        while puts := [one for one in effects if isinstance(one, RedisPut)]:
            effects = [
                effect for put in puts for effect in alone.node.step(Stored(put.request), later_ms)
            ]
            check_node(alone.node)
        if alone.node.context.retired:
            return
    pytest.fail("it never ends")


def test_a_write_at_the_limit_of_dirty_bytes_never_looks_at_all_lines() -> None:
    alone = Alone(max_dirty_bytes=DIRTY * 1_250)
    alone.fill(LINES, DIRTY)
    rest = iter(range(DIRTY, LINES))
    while isinstance(alone.write(f"key-{next(rest)}"), Written):
        pass
    before = len(alone.asked)
    refused: list[Written | Refused] = []
    assert work_of(lambda: refused.append(alone.write(f"key-{next(rest)}"))) < MOST_WORK
    assert refused == [Refused(Code.LIMIT)]
    assert len(alone.asked) == before + 1, "one line makes room for one"


def test_a_drain_reports_what_is_kept_some_at_a_time() -> None:
    cluster = Cluster("abc", write_backs_at_once=3, write_back_after_ms=60_000)
    keys = [f"key-{number}" for number in range(60)]
    for key in keys:
        home = cluster.ring.ring().owner(key)
        assert home is not None
        cluster.write(home, key, f"value of {key}")  # which the home's successor keeps as well
    kept = [key for key, _ in cluster.nodes["b"].kept.items()]
    assert len(kept) > 9
    cluster.log.clear()
    cluster.drain("b")
    cluster.after(5_000)
    assert cluster.retired == ["b"]
    sent = [one for one in cluster.sent(Report) if one.source == cluster.peer("b")]
    reports = [one.message for one in sent if isinstance(one.message, Report)]
    assert max(len(one.copies) for one in reports) == 3
    assert {key for one in reports for key, _ in one.copies} == set(kept)
    assert all(cluster.in_redis(key) for key in kept)
