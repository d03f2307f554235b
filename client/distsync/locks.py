"""A lock, a shared lock or a permit of a semaphore, held by a lease that renews itself.

What a holder may rely on:

- Inside `async with`, the lease has not ended by the client's own clock when the body begins, and
  the body is cancelled when it does, also without a network; the `async with` then raises
  `LockLost`. A body that does not await is not cancelled: it calls `check()` where it matters.
- A lease that ended is never silent: if the body ends by itself after its lease did, `LockLost` is
  raised all the same. An error of the body's own wins.
- A grant that came after a wait is renewed before the body runs, because the moment it was asked
  for, from which its lease counts, is long ago.
- Leaving gives the lock back, and tries to for as long as the lease lasts. If that fails nothing is
  raised: nobody renews it, so it ends by itself.
- `token` is the fencing token of the grant. What is written under the lock should carry it.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import TYPE_CHECKING, Final

from distsync.body import give_back_at_exit, tell_loss
from distsync.core import Core
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import (
    DistSyncError,
    LockLost,
    NotHolder,
    Unavailable,
)
from distsync.ghosts import may_have_been_done
from distsync.holding import Holding, OnLost
from distsync.identity import new_request_id
from distsync.lease import Lease, Span
from distsync.models import AcquireBody, Grant, GrantBody, Mode, UpgradeBody
from distsync.owners import Owners
from distsync.transport import Reply
from distsync.waiting import Wait, in_pieces, until_of, wait_seconds

if TYPE_CHECKING:
    from distsync.sessions import Session

__all__ = ["Lock", "OnLost"]

_log = logging.getLogger("distsync")

# A grant is older than its answer by the time the request took; beyond this it is renewed first.
_STALE_SECONDS: Final = 0.1
_STALE_RATIO: Final = 0.1


class Lock(Holding):
    """One lock of one owner; made by `AsyncClient.lock`, `.semaphore` or `Session.lock`.

    It can be acquired again after it was released, but is held once at a time.
    """

    def __init__(
        self,
        core: Core,
        name: str,
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        shared: bool = False,
        limit: int | None = None,
        owner: str | Owners | None = None,
        on_lost: OnLost | None = None,
        session: Session | None = None,
    ) -> None:
        """Users call `AsyncClient.lock` instead."""
        super().__init__(core, wait, owner, on_lost)
        self.name = name
        self.limit = limit
        self._ttl_ms = to_milliseconds(to_seconds(ttl, "ttl"))
        self._shared = shared or limit is not None
        self._session = session
        self._mode: Mode = "shared" if self._shared else "exclusive"
        self._token = 0
        self._changing = False
        self._doubtful = False

    def __repr__(self) -> str:
        state = f"held, token {self._token}" if self.held else "not held"
        return f"<{type(self).__name__} {self.name!r}: {state}>"

    @property
    def token(self) -> int:
        """The fencing token of the grant; the last one's after it ended.

        Raises:
            RuntimeError: it was never acquired.
        """
        if not self._token:
            raise RuntimeError(f"lock {self.name!r} was never acquired")
        return self._token

    @property
    def shared(self) -> bool:
        """Whether it is, or will be, held together with others."""
        return self._mode == "shared"

    def check(self) -> None:
        """Raise if the lock is not held any more; cheap, without I/O, from any thread.

        Raises:
            LockLost: the lease ended.
            NotHolder: it was released, or never acquired.
        """
        if self._lease is None:
            raise NotHolder(f"{self.name}: not held", name=self.name)
        if (error := self._lease.loss()) is not None:
            raise self._lost(error)

    async def acquire_as(self, owners: Owners, seconds: float | None) -> None:
        """Acquire it for one of these, unless an owner was given when the lock was made."""
        if self._acquiring is not None or self._lease is not None:
            raise RuntimeError(f"lock {self.name!r} is in use; make another object for it")
        if self._session is not None:
            self._session.check()
        self._acquiring = asyncio.current_task()
        try:
            names = (self.name,)
            owner = await self._core.ghosts.usable_owner(names, self._owners or owners)
            self._owner = owner
            await self._obtain(owner, seconds)
        finally:
            self._acquiring = None

    async def release(self) -> None:
        """Give it back.

        Raises:
            LockLost: the lease had ended before.
            NotHolder: it was not held, or somebody ended the grant.
            Unavailable, OutcomeUnknown: no answer while the lease lasted; it ends by itself.
        """
        lease = self._lease
        if lease is None:
            raise NotHolder(f"{self.name}: not held", name=self.name)
        error = lease.loss()
        self._let_go(lease)
        if error is not None:
            self._core.ghosts.release([self._grant_body()])
            raise self._lost(error)
        await self._release(lease)

    async def give_up(self) -> None:
        """Release it if it is held, after an interrupted acquire; never raises."""
        if self._acquiring is not None:
            await asyncio.wait([self._acquiring])
        if (lease := self._lease) is not None:
            self._let_go(lease)
            self._core.ghosts.release([self._grant_body()])

    async def upgrade(self, wait: Wait = None) -> None:
        """Turn a shared grant into an exclusive one, under a new token.

        The shared grant is kept while waiting, and if this fails.

        Raises:
            LockLost: the lease ended.
            Deadlock: another holder wants to upgrade as well.
            WaitTimeout, LockHeld: others hold it, after `wait` or at once.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        self.check()
        if self._mode == "exclusive":
            return
        self._changing = True
        try:
            until = until_of(self._core, wait_seconds(wait))
            self._changed(await in_pieces(self._core, until, self._ask_upgrade))
        except NotHolder as error:
            raise self._ended_by_cluster(error) from error
        except BaseException as error:
            self._doubtful = self._doubtful or may_have_been_done(error)
            raise
        finally:
            self._changing = False

    async def downgrade(self) -> None:
        """Turn an exclusive grant into a shared one; waiting readers may enter.

        Raises:
            LockLost: the lease ended.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        self.check()
        if self._mode == "shared":
            return
        try:
            reply = await self._core.transport.post("/lock/downgrade", self._grant_body(), Grant)
        except NotHolder as error:
            raise self._ended_by_cluster(error) from error
        self._changed(reply)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease = self._lease
        loss = None if lease is None else lease.loss()
        if lease is not None:
            self._let_go(lease)
        if loss is not None:
            self._core.ghosts.release([self._grant_body()])
        cancelled_by_us = await self._guard.leave(error)
        if lease is not None and loss is None:
            loss = await give_back_at_exit(self._release(lease), self.name)
        told = None if loss is None else self._lost(loss)
        tell_loss(told, error, cancelled_by_us=cancelled_by_us)

    # --- Acquiring --------------------------------------------------------------------------

    async def _obtain(self, owner: str, seconds: float | None) -> None:
        clock = self._core.clock
        until = until_of(self._core, seconds)
        while True:
            reply = await in_pieces(
                self._core,
                until,
                lambda wait: self._core.acquire(self._acquire_body(owner, wait)),
            )
            if self._session is not None:
                self._hold_by(self._session, reply.value)
                return
            span = Span(reply.sent_at, min(self._ttl_ms, reply.value.expires_in_ms) / 1000)
            ttl = self._ttl_ms / 1000
            age = ttl - (span.sent_at + span.seconds - clock.now())
            if age > min(_STALE_SECONDS, ttl * _STALE_RATIO):
                try:
                    span = await self._refresh(owner, reply.value.token)
                except NotHolder:
                    continue  # it came and went; wait again
            self._hold(self._new_lease(span), reply.value)
            return

    def _acquire_body(self, owner: str, wait: float) -> AcquireBody:
        session = self._session
        return AcquireBody(
            name=self.name,
            owner=owner,
            request_id=new_request_id(),
            mode="shared" if self._shared else "exclusive",
            ttl_ms=self._ttl_ms,
            wait_ms=to_milliseconds(wait),
            limit=self.limit,
            session=None if session is None else session.id,
        )

    async def _refresh(self, owner: str, token: int) -> Span:
        until = self._core.clock.now() + self._ttl_ms / 1000
        try:
            return await self._core.renew(self.name, owner, token, self._ttl_ms, until)
        except NotHolder:
            raise
        except BaseException:
            self._core.ghosts.release([self._grant_body(token)])
            raise

    def _hold_by(self, session: Session, grant: Grant) -> None:
        try:
            session.check()
        except DistSyncError:
            self._core.ghosts.release([self._grant_body(grant.token)])
            raise
        self._hold(session.lease, grant)

    def _new_lease(self, span: Span) -> Lease:
        lease = Lease(
            self._core.clock,
            self._core.background,
            span=span,
            renew=self._renew,
            error=LockLost,
            name=self.name,
        )
        return self._core.hold(lease)

    def _hold(self, lease: Lease, grant: Grant) -> None:
        self._token = grant.token
        self._mode = "shared" if self._shared else "exclusive"
        self._doubtful = False
        self._lease = lease
        self._listener = lease.subscribe(self._on_loss)

    # --- Holding ----------------------------------------------------------------------------

    async def _renew(self, until: float) -> Span:
        while True:
            token = self._token
            try:
                return await self._core.renew(
                    self.name, self._owner or "", token, self._ttl_ms, until
                )
            except NotHolder:
                if token != self._token:
                    continue  # upgraded meanwhile
                if self._changing:
                    raise Unavailable("an upgrade is under way") from None
                if not await self._adopt():
                    raise

    async def _adopt(self) -> bool:
        """After an upgrade in doubt: see whether it was done, and if so hold what it gave."""
        if not self._doubtful:
            return False
        info = await self._core.lock_info(self.name)
        self._doubtful = False
        for holder in info.holders:
            if holder.owner == self._owner and holder.token != self._token:
                self._token, self._mode = holder.token, holder.mode
                return True
        return False

    async def _ask_upgrade(self, wait: float) -> Reply[Grant]:
        body = UpgradeBody(
            name=self.name,
            owner=self._owner or "",
            token=self._token,
            request_id=new_request_id(),
            wait_ms=to_milliseconds(wait),
        )
        return await self._core.transport.post("/lock/upgrade", body, Grant, wait_seconds=wait)

    def _changed(self, reply: Reply[Grant]) -> None:
        # The lease goes on as it was: the cluster leaves the deadline of the grant in place.
        self._token, self._mode = reply.value.token, reply.value.mode
        self.check()

    def _ended_by_cluster(self, error: NotHolder) -> LockLost:
        reason = f"the cluster ended it ({error.detail})"
        if self._session is None and self._lease is not None:
            self._lease.lose(reason)
        return self._lost(LockLost(reason))

    def _on_loss(self, error: LockLost) -> None:
        error = self._lost(error)
        self._guard.interrupt(str(error))
        self._core.notify(self._on_lost, error)

    def _lost(self, error: LockLost) -> LockLost:
        fields = {**error.fields, "name": self.name, "token": self._token}
        return type(error)(f"{self.name}: {error.detail}", **fields)

    # --- Giving back ------------------------------------------------------------------------

    def _let_go(self, lease: Lease) -> None:
        lease.unsubscribe(self._listener)
        self._lease = None
        if self._session is None:
            lease.stop()

    def _grant_body(self, token: int | None = None) -> GrantBody:
        return GrantBody(
            name=self.name,
            owner=self._owner or "",
            token=self._token if token is None else token,
            request_id=new_request_id(),
        )

    async def _release(self, lease: Lease) -> None:
        timeout_at = self._core.clock.now() + self._core.transport.timeout_seconds
        give_up_at = min(timeout_at, lease.ends_at) if self._session is None else timeout_at
        try:
            await self._core.release(self._grant_body(), give_up_at)
        except NotHolder:
            if not await self._adopt():
                raise
            await self._core.release(self._grant_body(), give_up_at)
