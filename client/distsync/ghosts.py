"""Grants that nobody here holds any more, but that the cluster may still know.

They come about in three ways: an acquire was cancelled or ended in doubt, and a grant may have come
at the same moment; a lease was lost by the holder's own clock, which is always early; a release
found no answer. Each is laid to rest in the background, so that others need not wait for the lease
to end. That is done only when whatever ran under the lock has ended.

To the cluster a ghost looks like its owner holding the lock. The same owner asking for that lock
again, or for one whose holder waits for the ghost, would look like a deadlock. So an owner with a
ghost goes under another name from then on, unless the user named it; and who asks for the lock of
a ghost waits a moment until it is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Final, TypeAlias

from distsync.background import Background
from distsync.clock import Clock, sleep_until
from distsync.errors import (
    Conflict,
    DistSyncError,
    NotHolder,
    OutcomeUnknown,
    ServerError,
    SessionNotFound,
)
from distsync.identity import new_request_id
from distsync.models import (
    AcquireBody,
    AcquireManyBody,
    Grant,
    GrantBody,
    LockInfo,
    ManyGrant,
    Nothing,
)
from distsync.owners import Owners
from distsync.paths import lock_path
from distsync.transport import Transport

__all__ = ["PURSUIT_SECONDS", "AnyAcquire", "Ghosts", "acquire_path", "may_have_been_done"]

_log = logging.getLogger("distsync")

AnyAcquire: TypeAlias = AcquireBody | AcquireManyBody

_PATIENCE_SECONDS: Final = 1.0
PURSUIT_SECONDS: Final = 60.0
_FIRST_LOOK_SECONDS: Final = 0.02
_LONGEST_LOOK_SECONDS: Final = 1.0
_TIMES_ABSENT: Final = 2


def may_have_been_done(error: BaseException) -> bool:
    """Whether a call that ended like this may have changed something."""
    return not isinstance(error, DistSyncError) or isinstance(error, (OutcomeUnknown, ServerError))


def acquire_path(body: AnyAcquire) -> str:
    """Return where a body is sent."""
    return "/lock/acquire" if isinstance(body, AcquireBody) else "/lock/acquire_many"


class Ghosts:
    """The ghosts of one client."""

    def __init__(self, transport: Transport, clock: Clock, background: Background) -> None:
        self._transport = transport
        self._clock = clock
        self._background = background
        self._tasks: set[asyncio.Task[None]] = set()
        self._by_owner: dict[str, dict[str, asyncio.Task[None]]] = {}  # by lock name

    async def usable_owner(self, names: Iterable[str], owners: Owners) -> str:
        """Return an owner that no ghost of these locks goes by."""
        owner = owners.current()
        if owner not in self._by_owner:
            return owner
        of_owner = self._by_owner[owner]
        tasks = {of_owner[name] for name in names if name in of_owner}
        if tasks:
            patience = _PATIENCE_SECONDS if owners.can_renew else self._transport.timeout_seconds
            await asyncio.wait(tasks, timeout=patience)
        return owners.renew() if owner in self._by_owner else owner

    def release(self, bodies: Iterable[GrantBody]) -> None:
        """Give grants of one owner back."""
        given = list(bodies)
        names = [body.name for body in given]
        self._pursue(self._release_all(given), given[0].owner, names)

    def abandon(self, body: AnyAcquire) -> None:
        """Undo an acquire that nobody waits for any more."""
        self._pursue(self._undo(body), body.owner, _names(body))

    def run(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Do other work in the background to which `finish` gives time as well."""
        task = self._background.spawn(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finish(self, seconds: float) -> None:
        """Give what is under way this time to end."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    def _pursue(self, work: Coroutine[Any, Any, None], owner: str, names: Iterable[str]) -> None:
        task = self.run(work, name="distsync-ghost")
        of_owner = self._by_owner.setdefault(owner, {})
        of_owner.update(dict.fromkeys(names, task))

        def forget(done: asyncio.Task[None]) -> None:
            for name in [name for name, task in of_owner.items() if task is done]:
                del of_owner[name]
            if not of_owner and self._by_owner.get(owner) is of_owner:
                del self._by_owner[owner]

        task.add_done_callback(forget)

    async def _release_all(self, bodies: list[GrantBody]) -> None:
        await asyncio.gather(*(self._release(body) for body in bodies))

    async def _release(self, body: GrantBody) -> None:
        until = self._clock.now() + PURSUIT_SECONDS
        try:
            await self._transport.post("/lock/release", body, Nothing, give_up_at=until)
        except NotHolder:
            pass  # it has ended
        except DistSyncError as error:
            _log.warning("%s could not be given back, its lease will end: %s", body.name, error)

    async def _undo(self, body: AnyAcquire) -> None:
        name = _names(body)[0]  # all of them were granted, or none
        until = self._clock.now() + PURSUIT_SECONDS
        pause = _FIRST_LOOK_SECONDS
        absent = 0
        while self._clock.now() < until and absent < _TIMES_ABSENT:
            try:
                info = (await self._transport.get(lock_path(name), LockInfo)).value
                if any(holder.owner == body.owner for holder in info.holders):
                    await self._release_all(await self._grants_of(body))
                    return
            except (Conflict, SessionNotFound):
                return  # it is held by another request of the same owner, or has ended
            except DistSyncError as error:
                _log.info("cannot look yet whether %s was granted: %s", name, error)
            else:
                waits = any(waiter.owner == body.owner for waiter in info.waiters)
                absent = 0 if waits else absent + 1
            await sleep_until(self._clock, self._clock.now() + pause)
            pause = min(pause * 2, _LONGEST_LOOK_SECONDS)

    async def _grants_of(self, body: AnyAcquire) -> list[GrantBody]:
        # The same request again: if the grant is its own, this answers with the token; if another
        # request of the same owner got it, this is refused and nothing is taken away.
        path = acquire_path(body)
        if isinstance(body, AcquireBody):
            grant = (await self._transport.post(path, body, Grant)).value
            tokens = [(body.name, grant.token)]
        else:
            many = (await self._transport.post(path, body, ManyGrant)).value
            tokens = [(lock.name, lock.token) for lock in many.locks]
        return [
            GrantBody(name=name, owner=body.owner, token=token, request_id=new_request_id())
            for name, token in tokens
        ]


def _names(body: AnyAcquire) -> tuple[str, ...]:
    return (body.name,) if isinstance(body, AcquireBody) else tuple(body.names)
