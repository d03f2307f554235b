"""`Client`: the entry to everything, for programs without asyncio."""

from __future__ import annotations

import os
import ssl as ssl_module
import threading
import weakref
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from distsync.cache import Cache
from distsync.client import AsyncClient
from distsync.clock import Clock
from distsync.durations import Duration, to_seconds
from distsync.elections import Election
from distsync.errors import ClientClosed
from distsync.locks import OnLost
from distsync.models import ClusterStatus, LockInfo
from distsync.nodes import DEFAULT_URLS, parse_urls
from distsync.owners import FixedOwner, OneOwner, Owners
from distsync.portal import Portal
from distsync.sync_cache import SyncCache
from distsync.sync_locks import SyncLock, SyncLockSet, SyncSession, in_thread
from distsync.sync_queues import SyncQueue
from distsync.sync_recipes import SyncBarrier, SyncElection, SyncLatch
from distsync.waiting import Wait

__all__ = ["Client"]


class Client:
    """A client of one DistSync cluster that many threads may share.

    It is an `AsyncClient` in a thread of its own, which starts with the first call; renewals go on
    there while the threads that hold locks work. Each thread is an owner of its own. A process that
    was forked gets connections, ids and a thread of its own at its first call; locks made before
    the fork stay with the parent.

        with Client("http://127.0.0.1:8081") as client:
            with client.lock("orders/42", ttl=10) as lock:
                write(order, fence=lock.token)
                lock.check()                       # raises LockLost if it was lost

    Callbacks run in threads of their own. Durations are float seconds or `timedelta`.
    """

    def __init__(
        self,
        urls: str | Iterable[str] = DEFAULT_URLS,
        *,
        timeout: Duration = 10.0,
        owner: str | None = None,
        name: str | None = None,
        ssl: ssl_module.SSLContext | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a client; nothing is sent yet. See `AsyncClient` for the arguments."""
        self._urls = parse_urls(urls)
        self._timeout = to_seconds(timeout, "timeout")
        self._owner = owner
        self._name = name
        self._ssl = ssl
        self._clock = clock
        self._starting = threading.Lock()
        self._running: _Engine | None = None
        self._threads = threading.local()
        self._closed = False
        self._finalizer: weakref.finalize[..., Client] | None = None

        _clients.add(self)

    @property
    def client_id(self) -> str:
        """What this client calls itself; another in each process."""
        return self._engine().client.client_id

    @property
    def leader_url(self) -> str | None:
        """Where the leader is, if an answer said so."""
        return self._engine().client.leader_url

    # --- Locks ------------------------------------------------------------------------------

    def lock(
        self,
        name: str,
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        shared: bool = False,
        limit: int | None = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncLock:
        """Return a lock, to be held by `with` or `acquire()`; see `AsyncClient.lock`."""
        engine = self._engine()
        lock = engine.client.lock(
            name,
            ttl=ttl,
            shared=shared,
            limit=limit,
            owner=owner,
            on_lost=in_thread(on_lost),
        )
        return SyncLock(engine.portal, lock, self._owners_of_thread, wait)

    def semaphore(
        self,
        name: str,
        limit: int,
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncLock:
        """Return a permit of a semaphore; see `AsyncClient.semaphore`."""
        engine = self._engine()
        permit = engine.client.semaphore(
            name, limit, ttl=ttl, owner=owner, on_lost=in_thread(on_lost)
        )
        return SyncLock(engine.portal, permit, self._owners_of_thread, wait)

    def acquire_many(
        self,
        names: Iterable[str],
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        shared: bool = False,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncLockSet:
        """Return several locks that are taken in one step; see `AsyncClient.acquire_many`."""
        engine = self._engine()
        locks = engine.client.acquire_many(
            names, ttl=ttl, shared=shared, owner=owner, on_lost=in_thread(on_lost)
        )
        return SyncLockSet(engine.portal, locks, self._owners_of_thread, wait)

    def session(self, *, ttl: Duration = 10.0, on_lost: OnLost | None = None) -> SyncSession:
        """Return a session: one lease, renewed by one call, for many locks."""
        engine = self._engine()
        session = engine.client.session(ttl=ttl, on_lost=in_thread(on_lost))
        return SyncSession(engine.portal, session, self._owners_of_thread)

    def lock_info(self, name: str) -> LockInfo:
        """Return who holds a lock and who waits; linearizable."""
        engine = self._engine()
        return engine.portal.call(engine.client.lock_info, name)

    def locks(self, prefix: str = "") -> Iterator[LockInfo]:
        """Yield the locks that somebody holds or awaits, by name."""
        engine = self._engine()
        return engine.portal.iterate(engine.client.locks(prefix))

    def watch(self, name: str) -> Iterator[LockInfo]:
        """Yield the state of a lock now and after changes; see `AsyncClient.watch`."""
        engine = self._engine()
        return engine.portal.iterate(engine.client.watch(name))

    # --- Queues -----------------------------------------------------------------------------

    def queue(self, name: str) -> SyncQueue:
        """Return a queue, to push messages to and to claim them from; see `AsyncClient.queue`."""
        engine = self._engine()
        return SyncQueue(engine.portal, engine.client.queue(name))

    def queues(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of queues in the order of their bytes."""
        engine = self._engine()
        return engine.portal.iterate(engine.client.queues(prefix))

    # --- The cache --------------------------------------------------------------------------

    @property
    def cache(self) -> SyncCache:
        """The cache: values by key, the same for everyone at every moment; see `Cache`."""
        return SyncCache(self._cache_engine)

    # --- Recipes ----------------------------------------------------------------------------

    def election(
        self,
        name: str,
        *,
        ttl: Duration = 10.0,
        candidate: str | None = None,
        on_lost: OnLost | None = None,
    ) -> SyncElection:
        """Return a candidate in the election of a leader; see `AsyncClient.election`."""
        engine = self._engine()

        def make(lost: OnLost) -> Election:
            return engine.client.election(name, ttl=ttl, candidate=candidate, on_lost=lost)

        return SyncElection(engine.portal, make, on_lost)

    def barrier(self, name: str, parties: int, *, ttl: Duration = 10.0) -> SyncBarrier:
        """Return a barrier at which `parties` callers wait for each other; see `Barrier`."""
        engine = self._engine()
        return SyncBarrier(engine.portal, engine.client.barrier(name, parties, ttl=ttl))

    def latch(self, name: str, count: int = 1, *, keep: Duration = 86_400.0) -> SyncLatch:
        """Return a latch that opens when it was counted down `count` times; see `Latch`."""
        engine = self._engine()
        return SyncLatch(engine.portal, engine.client.latch(name, count, keep=keep))

    # --- The cluster ------------------------------------------------------------------------

    def status(self, url: str | None = None) -> ClusterStatus:
        """Return the view of any node, or of the one at `url`."""
        engine = self._engine()
        return engine.portal.call(engine.client.status, url)

    # --- Life -------------------------------------------------------------------------------

    def close(self) -> None:
        """End everything and close all connections; see `AsyncClient.close`. Twice is harmless."""
        with self._starting:
            self._closed = True
            if self._finalizer is not None:
                self._finalizer()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _engine(self) -> _Engine:
        engine = self._running
        if engine is not None and not self._closed:
            return engine
        with self._starting:
            if self._closed:
                raise ClientClosed("this client has been closed")
            if self._running is None:
                self._running = _Engine(
                    Portal("distsync-client"),
                    AsyncClient(
                        self._urls,
                        timeout=self._timeout,
                        owner=self._owner,
                        name=self._name,
                        ssl=self._ssl,
                        clock=self._clock,
                    ),
                )
                self._finalizer = weakref.finalize(self, _end, self._running)
            return self._running

    def _cache_engine(self) -> tuple[Portal, Cache]:
        engine = self._engine()
        return engine.portal, engine.client.cache

    def _owners_of_thread(self) -> Owners:
        if self._owner is not None:
            return FixedOwner(self._owner)
        owners: OneOwner | None = getattr(self._threads, "owners", None)
        if owners is None:
            owners = self._threads.owners = OneOwner(self._engine().client.identity)
        return owners

    def _forget_parent(self) -> None:
        engine, self._running = self._running, None
        self._starting = threading.Lock()
        self._threads = threading.local()
        if self._finalizer is not None:
            self._finalizer.detach()
            self._finalizer = None
        if engine is not None:
            engine.portal.abandon()
            _of_parents.append(engine)


class _Engine(NamedTuple):
    portal: Portal
    client: AsyncClient


def _end(engine: _Engine) -> None:
    engine.portal.close(engine.client.close)


def _after_fork() -> None:
    for client in list(_clients):
        client._forget_parent()


_clients: weakref.WeakSet[Client] = weakref.WeakSet()
_of_parents: list[_Engine] = []  # never freed: their sockets are the parent's
os.register_at_fork(after_in_child=_after_fork)
