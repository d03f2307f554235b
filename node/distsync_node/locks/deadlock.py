"""Deadlocks: cycles in the wait-for graph, found by the request that would close one.

The nodes are owners. An owner has an edge to the owner of everything that blocks one of its waiting
requests (the rule is in `lock.py`). Holders and waiters of a full semaphore all count, although one
of them leaving would be enough: a cycle through a semaphore may be reported although another holder
could have resolved it.

Checking when a request starts to wait, and when an upgrade is asked for, is enough: no other
event adds an edge.

  - A grant turns an earlier waiter into a holder. Whoever was blocked by it as a waiter is blocked
    by it as a holder, and nobody else: the modes are the same, and in a semaphore the sum of
    holders and earlier waiters stays what it was. A request that passes an earlier one does so
    only where the two do not conflict, and in a semaphore only while there is room for both.
  - A release, an expiry, a wait that ends: they take edges away. Nobody's edge stood for another
    one: who waits behind a waiting writer has edges of its own to the holders it conflicts with.
  - A downgrade takes edges away. An exclusive holder counts as one place of a semaphore before
    it, as it does after.
  - A new request stands behind all others; its edges go out of its own owner only. Granted at once,
    it conflicts with no waiter.
  - An upgrade comes in ahead of all waiters, so it adds edges out of its owner (to the other
    holders) and into it (from shared waiters of that lock). Either way a new cycle passes through
    the requester.

So the graph never has a cycle, and a new one passes through the requester: one breadth-first
search from there decides. An owner nobody waits for cannot be on a cycle; that is the usual case
and costs nothing. Otherwise each queue reached is walked once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from distsync_node.locks.commands import LockMode
from distsync_node.locks.lock import NO_LIMIT, Lock
from distsync_node.locks.records import WaitingRequest
from distsync_node.locks.state import LockState


def find_cycle(
    state: LockState, request: WaitingRequest, *, upgrading: Lock | None = None
) -> tuple[str, ...] | None:
    """Return the cycle that `request`, not queued yet, would close; its owner comes first.

    `upgrading` is the lock it would upgrade.
    """
    if not _is_waited_for(state, request.owner):
        return None
    search = _Search(state, request.owner, upgrading)
    search.expand(request)
    if upgrading is not None:
        for other in state.waits_of.get(request.owner, {}).values():
            search.expand(other)
    return search.run()


def find_any_cycle(state: LockState) -> tuple[str, ...] | None:
    """Return a cycle of owners that wait for each other. There never is one."""
    for owner, waits in state.waits_of.items():
        search = _Search(state, owner, None)
        for waiting in waits.values():
            search.expand(waiting)
        cycle = search.run()
        if cycle is not None:
            return cycle
    return None


def _is_waited_for(state: LockState, owner: str) -> bool:
    if owner in state.waits_of:  # somebody may stand behind it
        return True
    return any(state.locks[name].is_waited_for for name in state.names_held(owner))


class _Walk:
    """How far the blockers in one lock have been visited."""

    __slots__ = ("all_until", "holders_done", "waiters", "writers_until")

    def __init__(self, lock: Lock) -> None:
        self.waiters = [] if lock.queue is None else list(lock.queue.values())
        self.all_until = 0
        self.writers_until = 0
        self.holders_done = False

    def place_of(self, request: WaitingRequest) -> int:
        return bisect_left(self.waiters, request.sequence, key=lambda waiter: waiter.sequence)


class _Search:
    """A breadth-first search from `start` back to `start`."""

    def __init__(self, state: LockState, start: str, upgrading: Lock | None) -> None:
        self._state = state
        self._start = start
        self._upgrading = upgrading
        self._reached_from: dict[str, str] = {}
        self._walks: dict[str, _Walk] = {}
        self._frontier: list[str] = []

    def run(self) -> tuple[str, ...] | None:
        """Go on from what was expanded, and return the cycle through `start`, if there is one."""
        for owner in self._frontier:  # grows while it is walked
            if self._start in self._reached_from:
                break
            for waiting in self._state.waits_of[owner].values():
                self.expand(waiting)
        return self._cycle() if self._start in self._reached_from else None

    def _cycle(self) -> tuple[str, ...]:
        path = [self._start]
        owner = self._reached_from[self._start]
        while owner != self._start:
            path.append(owner)
            owner = self._reached_from[owner]
        return (path[0], *reversed(path[1:]))

    def expand(self, request: WaitingRequest) -> None:
        """Visit the owner of everything that blocks `request`."""
        reached_from = self._reached_from
        waits_of = self._state.waits_of
        for name in request.names:
            lock = self._state.locks.get(name)
            if lock is None:
                continue
            for owner in self._blockers(lock, request):
                if owner not in reached_from:
                    reached_from[owner] = request.owner
                    if owner in waits_of and owner != self._start:
                        self._frontier.append(owner)

    def _blockers(self, lock: Lock, request: WaitingRequest) -> Iterator[str]:
        if request.upgrade_token is not None:
            yield from (held.owner for held in lock.holders() if held.owner != request.owner)
            return
        walk = self._walks.get(lock.name)
        if walk is None:
            walk = self._walks[lock.name] = _Walk(lock)
        place = walk.place_of(request)
        is_full = NO_LIMIT < lock.limit <= lock.holder_count + place
        if request.mode is LockMode.EXCLUSIVE or is_full:
            yield from self._everything(lock, walk, place)
        else:
            yield from self._writers(lock, walk, place)

    def _everything(self, lock: Lock, walk: _Walk, place: int) -> Iterator[str]:
        if not walk.holders_done:
            walk.holders_done = True
            yield from (held.owner for held in lock.holders())
        for position in range(walk.all_until, place):
            yield walk.waiters[position].owner
        walk.all_until = max(walk.all_until, place)

    def _writers(self, lock: Lock, walk: _Walk, place: int) -> Iterator[str]:
        if lock.exclusive is not None:
            yield lock.exclusive.owner
        if lock is self._upgrading:
            yield self._start
        elif lock.upgrade is not None:
            yield lock.upgrade.owner
        for position in range(walk.writers_until, place):
            if walk.waiters[position].mode is LockMode.EXCLUSIVE:
                yield walk.waiters[position].owner
        walk.writers_until = max(walk.writers_until, place)
