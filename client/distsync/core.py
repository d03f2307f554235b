"""What everything one client hands out shares: the connections, the clock, names and cleaning up.

**Owners.** The owner is the node of the cluster's wait-for graph and is not re-entrant. By default
each asyncio task is an owner of its own, so that a deadlock between tasks is found, also across
processes, and a task that waits for what it holds itself is told so.

**Abandoned requests.** When an acquire is cancelled, or ends in doubt, its connection is closed and
the cluster cancels the wait; a grant may have come at the same moment. A background task then looks
until the owner neither waits nor holds, and gives back what was granted. The next acquire of the
same lock by the same owner waits for that, or it would meet its own ghost.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary, WeakSet

from distsync.background import Background
from distsync.clock import Clock, sleep_until
from distsync.errors import (
    Conflict,
    DistSyncError,
    LockLost,
    NotHolder,
    OutcomeUnknown,
    ServerError,
    SessionNotFound,
)
from distsync.identity import Identity, new_request_id
from distsync.lease import Lease, Span
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
from distsync.transport import Repeat, Reply, Transport

__all__ = ["Core", "lock_path", "may_have_been_done", "new_request_id"]

_log = logging.getLogger("distsync")

T = TypeVar("T")
_AnyAcquire: TypeAlias = AcquireBody | AcquireManyBody

_SETTLE_SECONDS = 60.0
_FIRST_LOOK_SECONDS = 0.02
_LONGEST_LOOK_SECONDS = 1.0
_TIMES_ABSENT = 2
_CLOSE_SECONDS = 1.0
_PAGE = 500


def lock_path(name: str) -> str:
    """Return the path of a lock: its name is one segment, whatever it contains."""
    segment = quote(name, safe="")
    if segment in (".", ".."):  # a path would swallow these
        segment = segment.replace(".", "%2E")
    return f"/lock/{segment}"


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
        self._owner = owner
        self._owner_of_task: WeakKeyDictionary[asyncio.Task[Any], str] = WeakKeyDictionary()
        self._leases: WeakSet[Lease] = WeakSet()
        self._abandoned: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._clean_ups: set[asyncio.Task[None]] = set()

    def owner(self) -> str:
        """Return the owner on whose behalf the current task acts."""
        if self._owner is not None:
            return self._owner
        task = asyncio.current_task()
        if task is None:
            return self.identity.new_owner()
        owner = self._owner_of_task.get(task)
        if owner is None:
            owner = self._owner_of_task[task] = self.identity.new_owner()
        return owner

    def hold(self, lease: Lease) -> Lease:
        """Remember a lease so that closing the client ends it."""
        self._leases.add(lease)
        return lease

    def notify(self, callback: Callable[[LockLost], object] | None, error: LockLost) -> None:
        """Call a user's callback; what it raises is logged, what it awaits runs as a task."""
        if callback is None:
            return
        try:
            result = callback(error)
        except Exception:
            _log.exception("an on_lost callback failed")
            return
        if inspect.iscoroutine(result):
            self.background.spawn(result, name="distsync-on-lost")

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

    async def _acquire(self, body: _AnyAcquire, kind: type[T], wait_ms: int) -> Reply[T]:
        await self._settled(body)
        try:
            return await self.transport.post(
                _acquire_path(body), body, kind, wait_seconds=wait_ms / 1000
            )
        except BaseException as error:
            if may_have_been_done(error):
                self._abandon(body)
            raise

    async def release(self, body: GrantBody, give_up_at: float | None) -> None:
        """Give one grant back; a cancellation does not stop it, only the waiting for it."""
        try:
            await self.transport.post("/lock/release", body, Nothing, give_up_at=give_up_at)
        except asyncio.CancelledError:
            self.release_later(body)
            raise

    def release_later(self, body: GrantBody) -> None:
        """Give one grant back in the background."""
        self.clean_up(self._release_quietly(body), name=f"distsync-release {body.name}")

    def clean_up(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Do in the background what `close()` shall give a moment to end."""
        task = self.background.spawn(work, name=name)
        self._clean_ups.add(task)
        task.add_done_callback(self._clean_ups.discard)
        return task

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
        for lease in list(self._leases):
            lease.lose("the client was closed")
        if self._clean_ups:
            await asyncio.wait(self._clean_ups, timeout=_CLOSE_SECONDS)
        await self.background.close()
        await self.transport.close()

    async def _settled(self, body: _AnyAcquire) -> None:
        """Wait until nothing of an abandoned request is left, but not for ever."""
        if not self._abandoned:
            return
        keys = [(name, body.owner) for name in _names(body)]
        tasks = {self._abandoned[key] for key in keys if key in self._abandoned}
        if tasks:
            await asyncio.wait(tasks, timeout=self.transport.timeout_seconds)

    def _abandon(self, body: _AnyAcquire) -> None:
        keys = [(name, body.owner) for name in _names(body)]
        task = self.clean_up(self._settle(body), name=f"distsync-settle {keys[0][0]}")

        def forget(done: asyncio.Task[None]) -> None:
            for key in keys:
                if self._abandoned.get(key) is done:
                    del self._abandoned[key]

        self._abandoned.update(dict.fromkeys(keys, task))
        task.add_done_callback(forget)

    async def _settle(self, body: _AnyAcquire) -> None:
        name = _names(body)[0]  # all of them were granted, or none
        ttl_seconds = body.ttl_ms / 1000 if isinstance(body, AcquireBody) else 0.0
        until = self.clock.now() + max(_SETTLE_SECONDS, ttl_seconds)
        pause = _FIRST_LOOK_SECONDS
        absent = 0
        while self.clock.now() < until and absent < _TIMES_ABSENT:
            try:
                info = await self.lock_info(name)
                if any(holder.owner == body.owner for holder in info.holders):
                    await self._give_back(body)
                    return
            except (Conflict, SessionNotFound):
                return  # it is held by another request of the same owner, or has ended
            except DistSyncError as error:
                _log.info("cannot look yet whether %s was granted: %s", name, error)
            else:
                waits = any(waiter.owner == body.owner for waiter in info.waiters)
                absent = 0 if waits else absent + 1
            await sleep_until(self.clock, self.clock.now() + pause)
            pause = min(pause * 2, _LONGEST_LOOK_SECONDS)

    async def _give_back(self, body: _AnyAcquire) -> None:
        # The same request again: if the grant is its own, this answers with the token; if another
        # request of the same owner got it, this is refused and nothing is taken away.
        path = _acquire_path(body)
        if isinstance(body, AcquireBody):
            grant = (await self.transport.post(path, body, Grant)).value
            tokens = [(body.name, grant.token)]
        else:
            many = (await self.transport.post(path, body, ManyGrant)).value
            tokens = [(lock.name, lock.token) for lock in many.locks]
        for name, token in tokens:
            await self._release_quietly(
                GrantBody(name=name, owner=body.owner, token=token, request_id=new_request_id())
            )

    async def _release_quietly(self, body: GrantBody) -> None:
        try:
            await self.transport.post("/lock/release", body, Nothing)
        except NotHolder:
            pass
        except DistSyncError as error:
            _log.warning("%s could not be released, its lease will end: %s", body.name, error)


def _names(body: _AnyAcquire) -> tuple[str, ...]:
    return (body.name,) if isinstance(body, AcquireBody) else tuple(body.names)


def _acquire_path(body: _AnyAcquire) -> str:
    return "/lock/acquire" if isinstance(body, AcquireBody) else "/lock/acquire_many"


def may_have_been_done(error: BaseException) -> bool:
    """Whether a call that ended like this may have changed something."""
    return not isinstance(error, DistSyncError) or isinstance(error, (OutcomeUnknown, ServerError))
