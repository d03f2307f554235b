"""What one lock and several locks have in common: they are taken, and then held by a lease."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self, TypeAlias

from distsync.body import BodyGuard
from distsync.core import Core
from distsync.errors import LockHeld, LockLost
from distsync.lease import Lease
from distsync.owners import FixedOwner, Owners
from distsync.waiting import DEFAULT, Default, Wait, seconds_or, wait_seconds

__all__ = ["Holding", "OnLost"]

OnLost: TypeAlias = Callable[[LockLost], object]
"""Called once when a lease is lost; may be a coroutine function."""


class Holding(ABC):
    """The part of `Lock` and `LockSet` that is the same."""

    def __init__(
        self, core: Core, wait: Wait, owner: str | Owners | None, on_lost: OnLost | None
    ) -> None:
        self._core = core
        self._wait = wait_seconds(wait)
        self._owners = FixedOwner(owner) if isinstance(owner, str) else owner
        self._owner = owner if isinstance(owner, str) else None
        self._on_lost = on_lost
        self._guard = BodyGuard()
        self._acquiring: asyncio.Task[object] | None = None
        self._lease: Lease | None = None
        self._listener = 0

    @property
    def owner(self) -> str | None:
        """Who holds it: the owner of the task that acquired it, unless one was given."""
        return self._owner

    @property
    def held(self) -> bool:
        """Whether it is held, by the clock of this moment."""
        return self._lease is not None and self._lease.is_live

    @property
    def acquired(self) -> bool:
        """Whether it was acquired and not given back yet; one that was lost counts."""
        return self._lease is not None

    def expires_in(self) -> float:
        """Return for how many seconds it is held without another renewal; 0 when it is not."""
        return 0.0 if self._lease is None else self._lease.remaining()

    @abstractmethod
    def check(self) -> None:
        """Raise if it is not held any more."""

    async def acquire(self, wait: Wait | Default = DEFAULT) -> Self:
        """Acquire it; returns itself.

        A long wait is asked for in pieces of ten minutes. Within a piece the place in the queue is
        kept, also over failures of nodes and connections.

        Raises:
            LockHeld: it is held and `wait` is 0.
            WaitTimeout: `wait` passed.
            Deadlock: waiting would close a cycle of owners, or this owner holds it already.
            LimitMismatch: the semaphore has another limit.
            SessionNotFound, SessionLost: the session is over; NotHolder: it is not open.
            LimitReached: the cluster takes no more waiters or locks.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        await self.acquire_as(self._core.owners, seconds_or(self._wait, wait))
        return self

    @abstractmethod
    async def acquire_as(self, owners: Owners, seconds: float | None) -> None:
        """Acquire it for one of these, unless an owner was given when it was made."""

    async def try_acquire(self) -> bool:
        """Acquire it if it is free now; returns whether it was. Raises as `acquire` otherwise."""
        try:
            await self.acquire(wait=0)
        except LockHeld:
            return False
        return True

    async def __aenter__(self) -> Self:
        if self._lease is None:
            await self.acquire()
        self.check()
        self._guard.enter()
        return self
