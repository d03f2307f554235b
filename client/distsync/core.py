"""What everything that one client hands out shares: the connections, the clock, the background."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final, Protocol, TypeVar
from urllib.parse import urlencode
from weakref import WeakSet

from distsync.background import Background
from distsync.clock import Clock
from distsync.errors import DistSyncError, NotHolder
from distsync.ghosts import AnyAcquire, Ghosts, acquire_path, may_have_been_done
from distsync.identity import Identity, new_request_id
from distsync.lease import Span
from distsync.models import (
    AcquireBody,
    AcquireManyBody,
    Grant,
    GrantBody,
    LockInfo,
    LockPage,
    ManyGrant,
    Nothing,
    RenewBody,
    Renewed,
)
from distsync.owners import FixedOwner, Owners, TaskOwners
from distsync.paths import lock_path
from distsync.transport import Repeat, Reply, Transport

__all__ = ["Core", "new_request_id"]

_log = logging.getLogger("distsync")

T = TypeVar("T")
L = TypeVar("L", bound="Losable")

_CLOSE_SECONDS: Final = 1.0
_PAGE = 500


class Losable(Protocol):
    """What is held by this client and ends when it is closed."""

    def lose(self, reason: str) -> None:
        """It is over although it was wanted."""
        ...


class Core:
    """The shared part of one client."""

    def __init__(
        self,
        transport: Transport,
        *,
        identity: Identity,
        clock: Clock,
        background: Background,
        owner: str | None,
    ) -> None:
        self.transport = transport
        self.identity = identity
        self.clock = clock
        self.background = background
        self.ghosts = Ghosts(transport, clock, background)
        self.owners: Owners = TaskOwners(identity) if owner is None else FixedOwner(owner)
        self.queue_owners: dict[str, str] = {}  # where clients reach the owners of queues
        self._held: WeakSet[Losable] = WeakSet()

    def hold(self, held: L) -> L:
        """Remember a lease or the like so that closing the client ends it."""
        self._held.add(held)
        return held

    def notify(
        self, callback: Callable[[T], object] | None, news: T, *, name: str = "on_lost"
    ) -> None:
        """Call a user's callback; what it raises is logged, what it awaits runs as a task."""
        if callback is None:
            return
        try:
            result = callback(news)
        except Exception:
            _log.exception("an %s callback failed", name)
            return
        if inspect.iscoroutine(result):
            self.background.spawn(result, name=f"distsync-{name}")

    async def renew(
        self, name: str, owner: str, token: int, ttl_ms: int, give_up_at: float
    ) -> Span:
        """Renew one grant."""
        body = RenewBody(name=name, owner=owner, token=token, ttl_ms=ttl_ms)
        reply = await self.transport.post(
            "/lock/renew",
            body,
            Renewed,
            repeat=Repeat.IDEMPOTENT,
            give_up_at=give_up_at,
            attempt_seconds=self.renewal_attempt_seconds(give_up_at),
        )
        return Span(reply.sent_at, min(ttl_ms, reply.value.expires_in_ms) / 1000)

    def renewal_attempt_seconds(self, give_up_at: float) -> float:
        """Return how long one attempt of a renewal may take: there must be time for others."""
        return max(0.05, (give_up_at - self.clock.now()) / 3)

    async def acquire(self, body: AcquireBody) -> Reply[Grant]:
        """Ask for one grant; in whatever way this ends without one, none stays behind."""
        return await self._acquire(body, Grant, body.wait_ms)

    async def acquire_many(self, body: AcquireManyBody) -> Reply[ManyGrant]:
        """Ask for several grants in one step; as `acquire`."""
        return await self._acquire(body, ManyGrant, body.wait_ms)

    async def _acquire(self, body: AnyAcquire, kind: type[T], wait_ms: int) -> Reply[T]:
        try:
            return await self.transport.post(
                acquire_path(body), body, kind, wait_seconds=wait_ms / 1000
            )
        except BaseException as error:
            if may_have_been_done(error):
                self.ghosts.abandon(body)
            raise

    async def release(self, body: GrantBody, give_up_at: float | None) -> None:
        """Give one grant back; what ends the waiting for it does not stop it."""
        try:
            await self.transport.post("/lock/release", body, Nothing, give_up_at=give_up_at)
        except NotHolder:
            raise
        except (DistSyncError, asyncio.CancelledError):
            self.ghosts.release([body])
            raise

    async def lock_info(self, name: str) -> LockInfo:
        """Return the state of a lock."""
        return (await self.transport.get(lock_path(name), LockInfo)).value

    async def list_locks(self, prefix: str) -> AsyncGenerator[LockInfo, None]:
        """Yield the locks that somebody holds or awaits, page by page."""
        after: str | None = None
        while True:
            query = {"prefix": prefix, "limit": str(_PAGE)}
            if after is not None:
                query["after"] = after
            page = (await self.transport.get(f"/locks?{urlencode(query)}", LockPage)).value
            for lock in page.locks:
                yield lock
            if page.next is None:
                return
            after = page.next

    async def close(self) -> None:
        """End every lease and background task and close the connections."""
        for held in list(self._held):
            held.lose("the client was closed")
        await self.ghosts.finish(_CLOSE_SECONDS)
        await self.background.close()
        await self.transport.close()
