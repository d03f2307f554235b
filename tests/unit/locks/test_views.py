"""What can be read: one lock, many, counts, changes."""

from __future__ import annotations

from distsync_node.locks.commands import LockMode
from distsync_node.locks.views import MAX_SHOWN, HolderView, WaiterView
from unit.locks.driver import Locks


def test_a_lock_shows_its_holders_and_waiters_in_order() -> None:
    locks = Locks()
    locks.open_session("s", ttl_ms=700)
    first = locks.share("first", "a", limit=2, ttl_ms=500)
    second = locks.share("second", "a", limit=2, session="s")
    locks.wait("writer", "a", wait_ms=300)
    locks.wait_shared("third", "a", limit=2, wait_ms=400)
    locks.upgrade("first", "a", first, wait_ms=200)
    view = locks.machine.lock_view("a")
    assert view is not None
    assert (view.name, view.limit, view.holder_count, view.waiter_count) == ("a", 2, 2, 3)
    assert view.holders == (
        HolderView("first", LockMode.SHARED, first, 1_500, None),
        HolderView("second", LockMode.SHARED, second, 1_700, "s"),
    )
    assert view.waiters == (
        WaiterView("first", LockMode.EXCLUSIVE, 1, 1_200, True),
        WaiterView("writer", LockMode.EXCLUSIVE, 2, 1_300, False),
        WaiterView("third", LockMode.SHARED, 3, 1_400, False),
    )


def test_a_lock_nobody_holds_or_wants_is_not_shown() -> None:
    locks = Locks()
    assert locks.machine.lock_view("a") is None
    assert locks.machine.lock_views() == []


def test_locks_are_listed_by_name_page_by_page() -> None:
    locks = Locks()
    for name in ("b/2", "a/1", "b/10", "c", "b/1", "b"):
        locks.hold("owner", name)

    def names(**options: object) -> list[str]:
        return [view.name for view in locks.machine.lock_views(**options)]  # type: ignore[arg-type]

    assert names() == ["a/1", "b", "b/1", "b/10", "b/2", "c"]
    assert names(prefix="b/") == ["b/1", "b/10", "b/2"]
    assert names(prefix="b/", limit=2) == ["b/1", "b/10"]
    assert names(prefix="b/", after="b/10", limit=2) == ["b/2"]
    assert names(prefix="d") == []


def test_a_view_is_bounded_and_its_counts_are_not() -> None:
    locks = Locks(checked=False)
    for number in range(MAX_SHOWN + 5):
        locks.share(f"reader-{number}", "a")
    for number in range(MAX_SHOWN + 7):
        locks.wait(f"writer-{number}", "a")
    view = locks.machine.lock_view("a")
    assert view is not None
    assert len(view.holders) == len(view.waiters) == MAX_SHOWN
    assert (view.holder_count, view.waiter_count) == (MAX_SHOWN + 5, MAX_SHOWN + 7)


def test_everything_is_counted() -> None:
    locks = Locks()
    locks.open_session("s")
    locks.hold("owner", "a", "b")
    locks.wait("other", "b", "c")
    locks.acquire("late", "a")
    counts = locks.machine.counts()
    assert counts.locks == 3
    assert counts.grants == 2
    assert counts.waiting_requests == 1
    assert counts.places == 2
    assert counts.sessions == 1
    assert counts.requests == 4
    assert counts.finished_requests == 1


def test_changes_name_the_locks_that_changed_in_order_and_once() -> None:
    locks = Locks()
    first = locks.hold("owner", "b")
    locks.hold("owner", "a")
    locks.wait("waiter", "b")
    assert locks.machine.take_changes() == ["b", "a"]
    assert locks.machine.take_changes() == []
    locks.release("owner", "b", first)
    assert locks.machine.take_changes() == ["b"]
    locks.downgrade("waiter", "b", locks.token("b", "waiter"))
    assert locks.machine.take_changes() == ["b"]
    locks.upgrade("waiter", "b", locks.token("b", "waiter"))
    assert locks.machine.take_changes() == ["b"]


def test_what_changes_nothing_to_be_seen_is_no_change() -> None:
    locks = Locks()
    token = locks.hold("owner", "a")
    locks.machine.take_changes()
    locks.renew("owner", "a", token)
    locks.acquire("late", "a")
    locks.release("late", "a", token)
    locks.open_session("s")
    locks.keep_alive("s")
    assert locks.machine.take_changes() == []
