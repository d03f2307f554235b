"""One lock: its holders, its queue and the rules of who may enter.

A request is *blocked* in a lock by

    an exclusive one   every holder and every earlier waiter;
    a shared one       an exclusive holder, an earlier exclusive waiter, a waiting upgrade, and,
                       when the lock has a limit and holders and earlier waiters together fill it,
                       by all of those;
    an upgrade         every other holder.

It enters a lock when nothing there blocks it. These are also the edges of the wait-for graph
(`deadlock.py`), so whoever waits has an edge to show for it. What follows from the rule: FIFO among
all that conflict; shared waiters next to each other enter together; no reader waits for a later
writer; a reader that comes after a waiting writer does not pass it, so writers do not starve; a
place of a semaphore is kept for an earlier waiter that is held up in another lock.

A lock exists only while it has holders or waiters. Its limit is fixed by the first shared request
(or by an exclusive one that names a limit) and stays for as long as the lock exists. Only when a
shared request gives up, and no other shared one holds or waits, may the next fix it anew: nobody
shall be refused for the limit of one that never held.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import msgspec

from distsync_node.locks.commands import LockMode
from distsync_node.locks.records import HeldGrant, WaitingRequest

LIMIT_UNSET = -1
NO_LIMIT = 0


class Lock(msgspec.Struct, gc=False, eq=False):
    """Holders by owner, waiters by sequence. `shared` and `queue` are None when empty, which
    halves the memory of the usual lock with one exclusive holder."""

    name: str
    limit: int = LIMIT_UNSET
    exclusive: HeldGrant | None = None
    shared: dict[str, HeldGrant] | None = None
    queue: OrderedDict[int, WaitingRequest] | None = None
    exclusive_waiters: int = 0
    upgrade: WaitingRequest | None = None

    # --- Holders --------------------------------------------------------------------------

    @property
    def holder_count(self) -> int:
        """How many owners hold it."""
        if self.shared is not None:
            return len(self.shared)
        return 0 if self.exclusive is None else 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody holds it and nobody waits for it."""
        return self.exclusive is None and self.shared is None and self.queue is None

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits for it."""
        return self.queue is not None or self.upgrade is not None

    def holders(self) -> Iterator[HeldGrant]:
        """Yield the grants in the order of their tokens."""
        if self.exclusive is not None:
            yield self.exclusive
        elif self.shared is not None:
            yield from self.shared.values()

    def grant_of(self, owner: str) -> HeldGrant | None:
        """Return the grant that `owner` holds."""
        exclusive = self.exclusive
        if exclusive is not None:
            return exclusive if exclusive.owner == owner else None
        return None if self.shared is None else self.shared.get(owner)

    def put(self, grant: HeldGrant) -> None:
        """Enter a grant, or put it in the place of the same owner's."""
        if grant.mode is LockMode.EXCLUSIVE:
            self.exclusive = grant
        elif self.shared is None:
            self.shared = {grant.owner: grant}
        else:
            self.shared[grant.owner] = grant

    def take_out(self, grant: HeldGrant) -> None:
        """Remove a grant."""
        if self.shared is None:
            self.exclusive = None
            return
        del self.shared[grant.owner]
        if not self.shared:
            self.shared = None

    # --- Waiters --------------------------------------------------------------------------

    @property
    def waiter_count(self) -> int:
        """How many requests wait, an upgrade among them."""
        queued = 0 if self.queue is None else len(self.queue)
        return queued + (self.upgrade is not None)

    def waiters(self) -> Iterator[WaitingRequest]:
        """Yield the waiting requests in the order in which they are served."""
        if self.upgrade is not None:
            yield self.upgrade
        if self.queue is not None:
            yield from self.queue.values()

    @property
    def has_shared(self) -> bool:
        """Whether a shared request holds it or waits for it."""
        waiting = 0 if self.queue is None else len(self.queue) - self.exclusive_waiters
        return self.shared is not None or waiting > 0

    def enqueue(self, request: WaitingRequest) -> None:
        """Put a request at the end of the queue, or an upgrade at the head of the lock."""
        if request.upgrade_token is not None:
            self.upgrade = request
            return
        if self.queue is None:
            self.queue = OrderedDict()
        self.queue[request.sequence] = request
        self.exclusive_waiters += request.mode is LockMode.EXCLUSIVE

    def dequeue(self, request: WaitingRequest) -> None:
        """Remove a waiting request."""
        if request.upgrade_token is not None:
            self.upgrade = None
            return
        if self.queue is None:
            return
        del self.queue[request.sequence]
        self.exclusive_waiters -= request.mode is LockMode.EXCLUSIVE
        if not self.queue:
            self.queue = None

    # --- Who may enter --------------------------------------------------------------------

    def admits_newcomer(self, mode: LockMode) -> bool:
        """Whether a request that stands behind all waiters is not blocked."""
        if mode is LockMode.EXCLUSIVE:
            return self.is_idle
        if self.exclusive is not None or self.upgrade is not None or self.exclusive_waiters:
            return False
        return self.limit <= NO_LIMIT or self.holder_count + self.waiter_count < self.limit

    def admits(self, request: WaitingRequest) -> bool:
        """Whether a queued request is not blocked here (upgrades aside)."""
        queue = self.queue
        if queue is None or self.exclusive is not None or self.upgrade is not None:
            return False
        place = self.holder_count
        if request.mode is LockMode.EXCLUSIVE:
            return place == 0 and next(iter(queue)) == request.sequence
        has_room_for_all = self.limit <= NO_LIMIT or place + len(queue) <= self.limit
        if has_room_for_all and not self.exclusive_waiters:
            return True
        for waiter in queue.values():
            if NO_LIMIT < self.limit <= place:
                return False
            if waiter.sequence == request.sequence:
                return True
            if waiter.mode is LockMode.EXCLUSIVE:
                return False
            place += 1
        return False

    def admissible(self) -> list[WaitingRequest]:
        """Return all queued requests that are not blocked here, in order."""
        found: list[WaitingRequest] = []
        if self.queue is None or self.exclusive is not None or self.upgrade is not None:
            return found
        place = self.holder_count
        for waiter in self.queue.values():
            if waiter.mode is LockMode.EXCLUSIVE:
                if place == 0:
                    found.append(waiter)
                break
            if NO_LIMIT < self.limit <= place:
                break
            found.append(waiter)
            place += 1
        return found
