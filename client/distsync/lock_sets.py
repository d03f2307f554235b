"""Several locks taken in one step, all or none, so that their order cannot cause a deadlock.

They stand on one session: theirs alone unless they are taken through one. So they are renewed by
one call, lost together, and given back together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType, TracebackType

from distsync.body import give_back_at_exit, tell_loss
from distsync.core import Core
from distsync.durations import Duration, to_milliseconds
from distsync.errors import DistSyncError, LockLost, NotHolder
from distsync.holding import Holding, OnLost
from distsync.identity import new_request_id
from distsync.lease import Lease
from distsync.models import AcquireManyBody, GrantBody
from distsync.owners import Owners
from distsync.sessions import Session
from distsync.waiting import Wait, in_pieces, until_of

__all__ = ["LockSet"]

_log = logging.getLogger("distsync")


class LockSet(Holding):
    """Several locks of one owner; made by `AsyncClient.acquire_many` or `Session.acquire_many`."""

    def __init__(
        self,
        core: Core,
        names: Iterable[str],
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        shared: bool = False,
        owner: str | Owners | None = None,
        on_lost: OnLost | None = None,
        session: Session | None = None,
    ) -> None:
        """Users call `AsyncClient.acquire_many` instead."""
        super().__init__(core, wait, owner, on_lost)
        self.names = tuple(names)
        self.shared = shared
        self._ttl = ttl
        self._given_session = session
        self._session: Session | None = None
        self._tokens: dict[str, int] = {}

    @property
    def tokens(self) -> Mapping[str, int]:
        """The fencing token of each lock by its name; the last ones after the grant ended."""
        return MappingProxyType(self._tokens)

    def check(self) -> None:
        """Raise if they are not held any more; from any thread. See `Lock.check`."""
        if self._lease is None:
            raise NotHolder(f"{', '.join(self.names)}: not held")
        self._lease.check()

    async def acquire_as(self, owners: Owners, seconds: float | None) -> None:
        """Acquire them for one of these, unless an owner was given when they were made."""
        if self._session is not None:
            raise RuntimeError("these locks are in use; make another object for them")
        if self._given_session is not None:
            self._given_session.check()
        self._acquiring = asyncio.current_task()
        session = self._session = self._given_session or Session(self._core, ttl=self._ttl)
        try:
            owner = await self._core.ghosts.usable_owner(self.names, self._owners or owners)
            self._owner = owner
            if self._given_session is None:
                await session.open()
            await self._obtain(session, owner, seconds)
        except BaseException:
            self._session = None
            if self._given_session is None:
                session.close_later()
            raise
        finally:
            self._acquiring = None

    async def release(self) -> None:
        """Give all of them back. Raises as `Lock.release`."""
        lease, session = self._let_go()
        if lease is None or session is None:
            raise NotHolder(f"{', '.join(self.names)}: not held")
        if (loss := lease.loss()) is not None:
            self._bury(session)
            raise loss
        await self._release(session)

    async def give_up(self) -> None:
        """Release them if they are held, after an interrupted acquire; never raises."""
        if self._acquiring is not None:
            await asyncio.wait([self._acquiring])
        _, session = self._let_go()
        if session is not None:
            self._bury(session)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        lease, session = self._let_go()
        loss = None if lease is None else lease.loss()
        if session is not None and loss is not None:
            self._bury(session)
        cancelled_by_us = await self._guard.leave(error)
        if session is not None and loss is None:
            loss = await give_back_at_exit(self._release(session), ", ".join(self.names))
        tell_loss(loss, error, cancelled_by_us=cancelled_by_us)

    async def _obtain(self, session: Session, owner: str, seconds: float | None) -> None:
        reply = await in_pieces(
            self._core,
            until_of(self._core, seconds),
            lambda wait: self._core.acquire_many(
                AcquireManyBody(
                    names=list(self.names),
                    owner=owner,
                    request_id=new_request_id(),
                    session=session.id,
                    mode="shared" if self.shared else "exclusive",
                    wait_ms=to_milliseconds(wait),
                )
            ),
        )
        self._tokens = {lock.name: lock.token for lock in reply.value.locks}
        try:
            session.check()
        except DistSyncError:
            self._bury(session)
            raise
        self._lease = session.lease
        self._listener = session.lease.subscribe(self._on_loss)

    def _let_go(self) -> tuple[Lease | None, Session | None]:
        lease, session = self._lease, self._session
        self._lease = self._session = None
        if lease is not None:
            lease.unsubscribe(self._listener)
        return lease, session

    async def _release(self, session: Session) -> None:
        if self._given_session is None:
            try:
                await session.close()
            except BaseException:
                self._bury(session)
                raise
            return
        releases = (self._core.release(body, None) for body in self._grant_bodies())
        results = await asyncio.gather(*releases, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def _bury(self, session: Session) -> None:
        """Give back in the background what is not held any more."""
        if self._tokens:
            self._core.ghosts.release(self._grant_bodies())
        if self._given_session is None:
            session.close_later()

    def _grant_bodies(self) -> list[GrantBody]:
        owner = self._owner or ""
        return [
            GrantBody(name=name, owner=owner, token=token, request_id=new_request_id())
            for name, token in self._tokens.items()
        ]

    def _on_loss(self, error: LockLost) -> None:
        self._guard.interrupt(str(error))
        self._core.notify(self._on_lost, error)
