"""Sessions: one lease, kept alive by one call, that many locks stand on.

A lock of a session is held for as long as the session lives; when the session is lost, all its
locks are, together. Leaving the session closes it and thereby gives back whatever it still holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from distsync.body import BodyGuard, tell_loss
from distsync.core import Core
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import DistSyncError, LockLost, NotHolder, SessionLost, SessionNotFound
from distsync.ghosts import PURSUIT_SECONDS, may_have_been_done
from distsync.identity import new_request_id
from distsync.lease import Lease, Span
from distsync.locks import Lock, OnLost
from distsync.models import (
    CloseSessionBody,
    KeepAliveBody,
    Nothing,
    OpenedSession,
    OpenSessionBody,
    Renewed,
)
from distsync.transport import Repeat
from distsync.waiting import Wait

if TYPE_CHECKING:
    from distsync.lock_sets import LockSet

__all__ = ["Session"]

_log = logging.getLogger("distsync")


class Session:
    """One session; made by `AsyncClient.session`, and opened once."""

    def __init__(self, core: Core, *, ttl: Duration = 10.0, on_lost: OnLost | None = None) -> None:
        """Users call `AsyncClient.session` instead."""
        self._core = core
        self._ttl_ms = to_milliseconds(to_seconds(ttl, "ttl"))
        self._on_lost = on_lost
        self._guard = BodyGuard()
        self._id: str | None = None
        self._lease: Lease | None = None
        self._listener = 0
        self._opening: asyncio.Task[object] | None = None

    @property
    def id(self) -> str:
        """The id under which the cluster knows the session.

        Raises:
            RuntimeError: it was never opened.
        """
        if self._id is None:
            raise RuntimeError("the session was never opened")
        return self._id

    @property
    def lease(self) -> Lease:
        """The lease that its locks stand on.

        Raises:
            NotHolder: the session is not open.
        """
        if self._lease is None:
            raise NotHolder("the session is not open")
        return self._lease

    @property
    def is_open(self) -> bool:
        """Whether it lives, by the clock of this moment."""
        return self._lease is not None and self._lease.is_live

    @property
    def acquired(self) -> bool:
        """Whether it was opened and not closed yet; one that was lost counts."""
        return self._lease is not None

    def expires_in(self) -> float:
        """Return for how many seconds it lives without another keep-alive; 0 when it is over."""
        return 0.0 if self._lease is None else self._lease.remaining()

    def check(self) -> None:
        """Raise if the session is not alive any more; cheap, without I/O, from any thread.

        Raises:
            SessionLost: its lease ended.
            NotHolder: it is not open.
        """
        self.lease.check()

    async def open(self) -> Session:
        """Open it; returns itself.

        Raises:
            LimitReached: the cluster takes no more sessions.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        if self._id is not None:
            raise RuntimeError("a session is opened once; make another one")
        body = OpenSessionBody(request_id=new_request_id(), ttl_ms=self._ttl_ms)
        self._opening = asyncio.current_task()
        try:
            reply = await self._core.transport.post("/session", body, OpenedSession)
        except BaseException as error:
            if may_have_been_done(error):
                self._core.ghosts.run(self._undo_opening(body), name="distsync-close-session")
            raise
        finally:
            self._opening = None
        self._id = reply.value.session
        span = Span(reply.sent_at, min(self._ttl_ms, reply.value.expires_in_ms) / 1000)
        lease = Lease(
            self._core.clock,
            self._core.background,
            span=span,
            renew=self._keep_alive,
            error=self._lost,
            name=f"session {self._id}",
        )
        self._lease = self._core.hold(lease)
        self._listener = lease.subscribe(self._on_loss)
        return self

    async def close(self) -> None:
        """Close it; whatever it holds is given back. Closing it twice is harmless.

        Raises:
            SessionLost: it had ended before.
            Unavailable, OutcomeUnknown: no answer in time; it ends by itself.
        """
        lease, self._lease = self._lease, None
        if lease is None:
            return
        loss = lease.loss()
        lease.unsubscribe(self._listener)
        if loss is not None:
            raise loss
        lease.lose("the session was closed")  # locks still held through it end now
        await self._close(lease)

    def close_later(self) -> None:
        """Close it in the background."""
        if self._lease is not None:
            self.leave_to_expire()
            body = CloseSessionBody(session=self.id, request_id=new_request_id())
            self._core.ghosts.run(self._close_quietly(body), name="distsync-close-session")

    async def give_up(self) -> None:
        """Close it if it is open, after an interrupted opening; never raises."""
        if self._opening is not None:
            await asyncio.wait([self._opening])
        self.close_later()

    def leave_to_expire(self) -> None:
        """Stop keeping it alive without telling the cluster."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.unsubscribe(self._listener)
            lease.lose("the session was left to expire")

    def lock(
        self,
        name: str,
        *,
        wait: Wait = None,
        shared: bool = False,
        limit: int | None = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> Lock:
        """Return a lock that is held while the session lives; see `AsyncClient.lock`."""
        return Lock(
            self._core,
            name,
            wait=wait,
            shared=shared,
            limit=limit,
            owner=owner,
            on_lost=on_lost,
            session=self,
        )

    def semaphore(
        self,
        name: str,
        limit: int,
        *,
        wait: Wait = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> Lock:
        """Return a permit that is held while the session lives; see `AsyncClient.semaphore`."""
        return Lock(
            self._core,
            name,
            wait=wait,
            limit=limit,
            owner=owner,
            on_lost=on_lost,
            session=self,
        )

    def acquire_many(
        self,
        names: Iterable[str],
        *,
        wait: Wait = None,
        shared: bool = False,
        owner: str | None = None,
    ) -> LockSet:
        """Return several locks that are taken in one step; see `AsyncClient.acquire_many`."""
        from distsync.lock_sets import LockSet

        return LockSet(self._core, names, wait=wait, shared=shared, owner=owner, session=self)

    async def __aenter__(self) -> Session:
        if self._lease is None:
            await self.open()
        self.check()
        self._guard.enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease, self._lease = self._lease, None
        loss: LockLost | None = None
        if lease is not None:
            loss = lease.loss()
            lease.unsubscribe(self._listener)
        cancelled_by_us = await self._guard.leave(error)
        if lease is not None and loss is None:
            lease.lose("the session was closed")
            try:
                await self._close(lease)
            except DistSyncError as failure:
                _log.warning("session %s could not be closed, it will end: %s", self._id, failure)
        tell_loss(loss, error, cancelled_by_us=cancelled_by_us)

    async def _keep_alive(self, until: float) -> Span:
        reply = await self._core.transport.post(
            "/session/keepalive",
            KeepAliveBody(session=self.id),
            Renewed,
            repeat=Repeat.IDEMPOTENT,
            give_up_at=until,
            attempt_seconds=self._core.renewal_attempt_seconds(until),
        )
        return Span(reply.sent_at, min(self._ttl_ms, reply.value.expires_in_ms) / 1000)

    async def _close(self, lease: Lease) -> None:
        body = CloseSessionBody(session=self.id, request_id=new_request_id())
        timeout_at = self._core.clock.now() + self._core.transport.timeout_seconds
        try:
            await self._core.transport.post(
                "/session/close", body, Nothing, give_up_at=min(timeout_at, lease.ends_at)
            )
        except SessionNotFound:
            pass  # it has ended, which is what was asked for
        except (DistSyncError, asyncio.CancelledError):
            self._core.ghosts.run(self._close_quietly(body), name="distsync-close-session")
            raise

    async def _undo_opening(self, body: OpenSessionBody) -> None:
        # The same request again answers with the session that it opened, or opens one now.
        post = self._core.transport.post
        until = self._core.clock.now() + PURSUIT_SECONDS
        try:
            reply = await post("/session", body, OpenedSession, give_up_at=until)
        except DistSyncError as error:
            _log.info("a session may have been opened that will end by itself: %s", error)
        else:
            session = reply.value.session
            await self._close_quietly(
                CloseSessionBody(session=session, request_id=new_request_id())
            )

    async def _close_quietly(self, body: CloseSessionBody) -> None:
        until = self._core.clock.now() + PURSUIT_SECONDS
        try:
            await self._core.transport.post("/session/close", body, Nothing, give_up_at=until)
        except SessionNotFound:
            pass  # it has ended
        except DistSyncError as error:
            _log.info("session %s was not closed, it will end: %s", body.session, error)

    def _on_loss(self, error: LockLost) -> None:
        self._guard.interrupt(str(error))
        self._core.notify(self._on_lost, error)

    def _lost(self, reason: str) -> SessionLost:
        return SessionLost(f"session {self._id}: {reason}", session=self._id)
