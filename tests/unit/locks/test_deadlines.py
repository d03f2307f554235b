"""The heap of deadlines: right, and no larger than what lives."""

from __future__ import annotations

import random

from distsync_node.locks.deadlines import GONE, SLACK, DeadlineHeap
from unit.locks.driver import Locks


class Leases:
    """Deadlines by name, and a heap over them."""

    def __init__(self) -> None:
        self.deadlines: dict[str, int] = {}
        self.heap: DeadlineHeap[str] = DeadlineHeap(
            current=lambda name: self.deadlines.get(name, GONE), identity=lambda name: name
        )

    def set(self, name: str, deadline_ms: int) -> None:
        old = self.deadlines.get(name)
        self.deadlines[name] = deadline_ms
        if old is None or deadline_ms < old:
            self.heap.push(deadline_ms, name)

    def due(self, now_ms: int, limit: int = 1_000) -> list[tuple[int, str]]:
        return self.heap.due(now_ms, limit)


def test_the_earliest_come_first_and_stay_until_they_end() -> None:
    leases = Leases()
    for name, deadline_ms in (("c", 30), ("a", 10), ("b", 20)):
        leases.set(name, deadline_ms)
    assert leases.due(9) == []
    for _ in range(3):
        assert leases.due(20) == [(10, "a"), (20, "b")]
    assert leases.due(100, limit=1) == [(10, "a")]
    del leases.deadlines["a"]
    assert leases.due(100) == [(20, "b"), (30, "c")]


def test_a_deadline_moved_either_way_is_found_where_it_is() -> None:
    leases = Leases()
    leases.set("a", 10)
    leases.set("a", 50)
    assert leases.due(49) == []
    leases.set("a", 20)
    assert leases.heap.next_ms() == 20
    assert leases.due(20) == [(20, "a")]
    leases.set("a", 60)
    leases.set("a", 40)
    assert leases.due(100) == [(40, "a")]


def test_renewals_do_not_grow_it() -> None:
    leases = Leases()
    for number in range(10):
        leases.set(f"lease-{number}", number)
    for step in range(1, 10_000):
        leases.set(f"lease-{step % 10}", 10 * step)
    assert len(leases.heap) == 10


def test_leases_that_grow_shorter_and_longer_do_not_grow_it_without_bound() -> None:
    leases = Leases()
    for step in range(10_000):
        leases.set("a", step + (10 if step % 2 else 1_000))
    assert len(leases.heap) <= 2 + SLACK


def test_leases_that_end_do_not_grow_it_without_bound() -> None:
    leases = Leases()
    for step in range(10_000):
        leases.set(f"lease-{step}", 10**9)
        if step >= 100:
            del leases.deadlines[f"lease-{step - 100}"]
    assert len(leases.heap) <= 2 * 101 + SLACK


def test_it_agrees_with_a_sorted_list_whatever_happens() -> None:
    chance = random.Random(4)
    leases = Leases()
    for step in range(5_000):
        name = f"lease-{chance.randrange(150)}"
        if name in leases.deadlines and chance.random() < 0.2:
            del leases.deadlines[name]
        else:
            leases.set(name, step + chance.randrange(200))
        now_ms = step + chance.randrange(100)
        expected = sorted((at, name) for name, at in leases.deadlines.items() if at <= now_ms)
        assert sorted(leases.due(now_ms)) == expected
        assert leases.heap.next_ms() == min(leases.deadlines.values(), default=None)


def test_acquire_and_release_without_end_leave_no_deadlines_behind() -> None:
    locks = Locks(checked=False)
    for _ in range(2_000):
        locks.release("owner", "a", locks.hold("owner", "a"))
    assert len(locks.machine._state.grant_deadlines) <= 2 + SLACK
    assert locks.machine.next_deadline_ms() is None
    assert not locks.machine.has_leases
