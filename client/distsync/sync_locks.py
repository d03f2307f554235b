"""Locks, sets of locks and sessions for programs without asyncio.

They hold as their asynchronous models do, with one difference: nothing can cancel the body of a
`with`. It calls `check()` where it matters, or is told by `on_lost`; leaving a `with` whose lock
was lost raises `LockLost`, unless the body raised an error of its own.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from distsync.body import tell_loss
from distsync.errors import DistSyncError, LockHeld, LockLost, NotHolder
from distsync.lock_sets import LockSet
from distsync.locks import Lock, OnLost
from distsync.owners import Owners
from distsync.sessions import Session
from distsync.waiting import DEFAULT, Default, Wait, seconds_or, wait_seconds

if TYPE_CHECKING:
    from distsync.portal import Portal

__all__ = ["SyncLock", "SyncLockSet", "SyncSession"]

_log = logging.getLogger("distsync")

L = TypeVar("L", bound=Lock | LockSet)


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
    tell_loss(loss, error)


class InWith:
    """What can be held by a `with`, once at a time; also when it was taken before."""

    _portal: Portal
    _in_with = False

    def _take(self, taking: Future[Any], give_up: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait until it is taken. An interruption may come when it is held already: give it up."""
        try:
            taking.result()
        except BaseException:
            has_failed = taking.done() and not taking.cancelled() and taking.exception() is not None
            if not has_failed:
                taking.cancel()
                self._portal.send(give_up)
            raise

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


class _SyncHolding(InWith, ABC, Generic[L]):
    """What one and several locks have in common."""

    def __init__(
        self, portal: Portal, held: L, owners: Callable[[], Owners], wait: Wait = None
    ) -> None:
        """Users call `Client.lock` or `Client.acquire_many` instead."""
        self._portal = portal
        self._held: L = held
        self._owners_of_thread = owners
        self._wait = wait_seconds(wait)

    @property
    def owner(self) -> str | None:
        """Who holds it: the owner of the thread that acquired it, unless one was given."""
        return self._held.owner

    @property
    def held(self) -> bool:
        """Whether it is held, by the clock of this moment."""
        return self._held.held

    def expires_in(self) -> float:
        """Return for how many seconds it is held without another renewal; 0 when it is not."""
        return self._held.expires_in()

    def check(self) -> None:
        """Raise `LockLost` if it was lost, `NotHolder` if it is not held; no I/O."""
        self._held.check()

    def acquire(self, wait: Wait | Default = DEFAULT) -> Self:
        """Acquire it; returns itself. Raises as `Lock.acquire`."""
        seconds = seconds_or(self._wait, wait)
        taking = self._portal.submit(self._held.acquire_as, self._owners_of_thread(), seconds)
        self._take(taking, self._held.give_up)
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
        self._portal.call(self._held.release)

    def __enter__(self) -> Self:
        self._enter(self._held, self.acquire)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(self._held, self.release, self._label, error)

    @property
    @abstractmethod
    def _label(self) -> str:
        """What it is called in the log."""


class SyncLock(_SyncHolding[Lock]):
    """A lock, shared lock or permit; made by `Client.lock`, `.semaphore` or `SyncSession.lock`.

    One thread acquires it; any thread may call `check()` and `expires_in()`.
    """

    @property
    def name(self) -> str:
        """The name of the lock."""
        return self._held.name

    @property
    def token(self) -> int:
        """The fencing token of the grant; see `Lock.token`."""
        return self._held.token

    @property
    def shared(self) -> bool:
        """Whether it is, or will be, held together with others."""
        return self._held.shared

    def upgrade(self, wait: Wait = None) -> None:
        """Turn a shared grant into an exclusive one, under a new token; see `Lock.upgrade`."""
        self._portal.call(self._held.upgrade, wait)

    def downgrade(self) -> None:
        """Turn an exclusive grant into a shared one; see `Lock.downgrade`."""
        self._portal.call(self._held.downgrade)

    @property
    def _label(self) -> str:
        return self.name


class SyncLockSet(_SyncHolding[LockSet]):
    """Several locks; made by `Client.acquire_many` or `SyncSession.acquire_many`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the locks."""
        return self._held.names

    @property
    def tokens(self) -> Mapping[str, int]:
        """The fencing token of each lock by its name."""
        return self._held.tokens

    @property
    def _label(self) -> str:
        return ", ".join(self.names)


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
        self._take(self._portal.submit(self._session.open), self._session.give_up)
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
