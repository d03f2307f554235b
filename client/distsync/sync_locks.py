"""Locks, sets of locks and sessions for programs without asyncio.

They hold as their asynchronous models do, with one difference: nothing can cancel the body of a
`with`. It calls `check()` where it matters, or is told by `on_lost`; leaving a `with` whose lock
was lost raises `LockLost`, unless the body raised an error of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from distsync.errors import DistSyncError, LockHeld, LockLost, NotHolder
from distsync.lock_sets import LockSet
from distsync.locks import Lock, OnLost
from distsync.owners import Owners
from distsync.sessions import Session
from distsync.waiting import DEFAULT, Default, Wait, wait_seconds

if TYPE_CHECKING:
    from distsync.portal import Portal

__all__ = ["SyncLock", "SyncLockSet", "SyncSession"]

_log = logging.getLogger("distsync")


class _Held(Protocol):
    """What a `with` gives back."""

    @property
    def acquired(self) -> bool: ...

    def check(self) -> None: ...


def leave(
    portal: Portal,
    held: _Held,
    give_back: Callable[[], object],
    what: str,
    error: BaseException | None,
) -> None:
    """End the body of a `with`: give back, and tell of a loss that nothing else tells of."""
    if not held.acquired or not portal.of_this_process:
        return  # the body gave it back itself, or it is for the parent of this process to do
    loss: LockLost | None = None
    try:
        held.check()
    except LockLost as lost:
        loss = lost
    try:
        give_back()
    except (LockLost, NotHolder) as failure:
        reason = f"the cluster ended it ({failure.detail})"
        loss = loss or (failure if isinstance(failure, LockLost) else LockLost(reason))
    except DistSyncError as failure:
        _log.warning("%s could not be given back, its lease will end: %s", what, failure)
    if loss is None:
        return
    if error is None:
        raise loss
    error.add_note(str(loss))


class InWith:
    """What can be held by a `with`, once at a time; also when it was taken before."""

    _portal: Portal
    _in_with = False

    def _enter(self, held: _Held, take: Callable[[], object]) -> None:
        if self._in_with:
            raise RuntimeError("it is held by a `with` already; make another object")
        if held.acquired:
            held.check()
        else:
            take()
        self._in_with = True

    def _leave(
        self, held: _Held, give_back: Callable[[], object], what: str, error: BaseException | None
    ) -> None:
        self._in_with = False
        leave(self._portal, held, give_back, what, error)


class SyncLock(InWith):
    """A lock, shared lock or permit; made by `Client.lock`, `.semaphore` or `SyncSession.lock`.

    One thread acquires it; any thread may call `check()` and `expires_in()`.
    """

    def __init__(
        self, portal: Portal, lock: Lock, owners: Callable[[], Owners], wait: Wait = None
    ) -> None:
        """Users call `Client.lock` instead."""
        self._portal = portal
        self._lock = lock
        self._owners_of_thread = owners
        self._wait = wait_seconds(wait)

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._lock.name

    @property
    def owner(self) -> str | None:
        """Who holds it: the owner of the thread that acquired it, unless one was given."""
        return self._lock.owner

    @property
    def token(self) -> int:
        """The fencing token of the grant; see `Lock.token`."""
        return self._lock.token

    @property
    def shared(self) -> bool:
        """Whether it is, or will be, held together with others."""
        return self._lock.shared

    @property
    def held(self) -> bool:
        """Whether it is held, by the clock of this moment."""
        return self._lock.held

    def expires_in(self) -> float:
        """Return for how many seconds it is held without another renewal; 0 when it is not."""
        return self._lock.expires_in()

    def check(self) -> None:
        """Raise `LockLost` if the lock was lost, `NotHolder` if it is not held; no I/O."""
        self._lock.check()

    def acquire(self, wait: Wait | Default = DEFAULT) -> SyncLock:
        """Acquire it; returns itself. Raises as `Lock.acquire`."""
        seconds = self._wait if isinstance(wait, Default) else wait_seconds(wait)
        try:
            self._portal.call(self._lock.acquire_as, self._owners_of_thread(), seconds)
        except BaseException as error:
            if not isinstance(error, DistSyncError):  # interrupted; it may be held all the same
                self._portal.send(self._lock.give_up)
            raise
        return self

    def try_acquire(self) -> bool:
        """Acquire it if it is free now; returns whether it was."""
        try:
            self.acquire(wait=0)
        except LockHeld:
            return False
        return True

    def release(self) -> None:
        """Give it back. Raises as `Lock.release`."""
        self._portal.call(self._lock.release)

    def upgrade(self, wait: Wait = None) -> None:
        """Turn a shared grant into an exclusive one, under a new token; see `Lock.upgrade`."""
        self._portal.call(self._lock.upgrade, wait)

    def downgrade(self) -> None:
        """Turn an exclusive grant into a shared one; see `Lock.downgrade`."""
        self._portal.call(self._lock.downgrade)

    def __enter__(self) -> SyncLock:
        self._enter(self._lock, self.acquire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self._lock, self.release, self.name, error)


class SyncLockSet(InWith):
    """Several locks; made by `Client.acquire_many` or `SyncSession.acquire_many`."""

    def __init__(
        self, portal: Portal, locks: LockSet, owners: Callable[[], Owners], wait: Wait = None
    ) -> None:
        """Users call `Client.acquire_many` instead."""
        self._portal = portal
        self._locks = locks
        self._owners_of_thread = owners
        self._wait = wait_seconds(wait)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the locks."""
        return self._locks.names

    @property
    def owner(self) -> str | None:
        """Who holds them."""
        return self._locks.owner

    @property
    def tokens(self) -> Mapping[str, int]:
        """The fencing token of each lock by its name."""
        return self._locks.tokens

    @property
    def held(self) -> bool:
        """Whether they are held, by the clock of this moment."""
        return self._locks.held

    def expires_in(self) -> float:
        """Return for how many seconds they are held without another renewal."""
        return self._locks.expires_in()

    def check(self) -> None:
        """Raise `LockLost` if they were lost, `NotHolder` if they are not held; no I/O."""
        self._locks.check()

    def acquire(self, wait: Wait | Default = DEFAULT) -> SyncLockSet:
        """Acquire all of them; returns itself. Raises as `Lock.acquire`."""
        seconds = self._wait if isinstance(wait, Default) else wait_seconds(wait)
        try:
            self._portal.call(self._locks.acquire_as, self._owners_of_thread(), seconds)
        except BaseException as error:
            if not isinstance(error, DistSyncError):  # interrupted; they may be held all the same
                self._portal.send(self._locks.give_up)
            raise
        return self

    def try_acquire(self) -> bool:
        """Acquire all of them if all are free now; returns whether they were."""
        try:
            self.acquire(wait=0)
        except LockHeld:
            return False
        return True

    def release(self) -> None:
        """Give all of them back. Raises as `Lock.release`."""
        self._portal.call(self._locks.release)

    def __enter__(self) -> SyncLockSet:
        self._enter(self._locks, self.acquire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self._locks, self.release, ", ".join(self.names), error)


class SyncSession(InWith):
    """One lease for many locks; made by `Client.session`. See `Session`."""

    def __init__(self, portal: Portal, session: Session, owners: Callable[[], Owners]) -> None:
        """Users call `Client.session` instead."""
        self._portal = portal
        self._session = session
        self._owners_of_thread = owners

    @property
    def id(self) -> str:
        """The id under which the cluster knows the session."""
        return self._session.id

    @property
    def is_open(self) -> bool:
        """Whether it lives, by the clock of this moment."""
        return self._session.is_open

    def expires_in(self) -> float:
        """Return for how many seconds it lives without another keep-alive; 0 when it is over."""
        return self._session.expires_in()

    def check(self) -> None:
        """Raise `SessionLost` if the session was lost, `NotHolder` if it is not open; no I/O."""
        self._session.check()

    def open(self) -> SyncSession:
        """Open it; returns itself. Raises as `Session.open`."""
        try:
            self._portal.call(self._session.open)
        except BaseException as error:
            if not isinstance(error, DistSyncError):
                self._portal.send(self._session.give_up)
            raise
        return self

    def close(self) -> None:
        """Close it; whatever it holds is given back. Raises as `Session.close`."""
        self._portal.call(self._session.close)

    def lock(
        self,
        name: str,
        *,
        wait: Wait = None,
        shared: bool = False,
        limit: int | None = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncLock:
        """Return a lock that is held while the session lives; see `Client.lock`."""
        lock = self._session.lock(
            name, shared=shared, limit=limit, owner=owner, on_lost=in_thread(on_lost)
        )
        return SyncLock(self._portal, lock, self._owners_of_thread, wait)

    def semaphore(
        self,
        name: str,
        limit: int,
        *,
        wait: Wait = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncLock:
        """Return a permit that is held while the session lives; see `Client.semaphore`."""
        lock = self._session.semaphore(name, limit, owner=owner, on_lost=in_thread(on_lost))
        return SyncLock(self._portal, lock, self._owners_of_thread, wait)

    def acquire_many(
        self,
        names: Iterable[str],
        *,
        wait: Wait = None,
        shared: bool = False,
        owner: str | None = None,
    ) -> SyncLockSet:
        """Return several locks that are taken in one step; see `Client.acquire_many`."""
        locks = self._session.acquire_many(names, shared=shared, owner=owner)
        return SyncLockSet(self._portal, locks, self._owners_of_thread, wait)

    def __enter__(self) -> SyncSession:
        self._enter(self._session, self.open)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self._session, self.close, "the session", error)


def in_thread(callback: OnLost | None) -> OnLost | None:
    """Return the callback so that it runs in a thread of its own, where it may wait."""
    if callback is None:
        return None

    def start(error: LockLost) -> None:
        threading.Thread(
            target=callback, args=(error,), name="distsync-on-lost", daemon=True
        ).start()

    return start
