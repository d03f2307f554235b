"""`AsyncClient`: the entry to everything, for programs on asyncio."""

from __future__ import annotations

import asyncio
import ssl as ssl_module
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType

from distsync.background import Background
from distsync.barriers import Barrier
from distsync.cache import Cache
from distsync.clock import Clock, SystemClock
from distsync.core import Core
from distsync.durations import Duration, to_seconds
from distsync.elections import Election
from distsync.identity import Identity
from distsync.latches import Latch
from distsync.lock_sets import LockSet
from distsync.locks import Lock, OnLost
from distsync.models import ClusterStatus, LockInfo
from distsync.nodes import DEFAULT_URLS, parse_urls
from distsync.queue_calls import list_queues
from distsync.queues import Queue
from distsync.sessions import Session
from distsync.transport import Transport
from distsync.waiting import Wait
from distsync.watching import watch_lock

__all__ = ["AsyncClient"]


class AsyncClient:
    """A client of one DistSync cluster.

    It is given the URL of any node, or several; it finds the other nodes and goes straight to the
    leader. Calls ride out failures of nodes for `timeout` and repeat only what is safe. It belongs
    to the event loop in which it is first used.

        async with AsyncClient("http://127.0.0.1:8081") as client:
            async with client.lock("orders/42", ttl=10) as lock:
                await write(order, fence=lock.token)

    Durations are float seconds or `timedelta`.
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
        """Make a client; nothing is sent yet.

        Args:
            urls: node URLs, as a list or separated by commas; any of them will do. The default is
                where `distsync up` runs three nodes: ports 8081 to 8083 here.
            timeout: how long a call rides out an outage; time spent waiting for a lock that
                others hold is not counted.
            owner: the owner of every lock; by default each task is an owner of its own.
            name: what this client is called where its locks are listed; by default the host's name.
            ssl: for https URLs with other certificates than the system's.
            clock: for tests.

        Raises:
            ValueError: no URL, or something that is not one; a negative timeout.
        """
        self._identity = Identity(name)
        self._clock = clock or SystemClock()
        self._background = Background()
        transport = Transport(
            parse_urls(urls),
            identity=self._identity,
            clock=self._clock,
            background=self._background,
            timeout_seconds=to_seconds(timeout, "timeout"),
            ssl=ssl,
        )
        self._core = Core(
            transport,
            identity=self._identity,
            clock=self._clock,
            background=self._background,
            owner=owner,
        )
        self._cache = Cache(self._core)

    @property
    def identity(self) -> Identity:
        """Where its ids come from."""
        return self._identity

    @property
    def client_id(self) -> str:
        """What this client calls itself: its name, the process and a random part."""
        return self._identity.client_id

    def new_owner(self) -> str:
        """Return an owner that nobody is yet, for locks that several tasks share."""
        return self._identity.new_owner()

    @property
    def leader_url(self) -> str | None:
        """Where the leader is, if an answer said so."""
        return self._core.transport.nodes.leader_url

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
    ) -> Lock:
        """Return a lock, to be held by `async with` or `acquire()`.

        Args:
            name: up to 512 bytes; slashes are part of it.
            ttl: the lease. It is renewed at a third of it while the lock is held; when the holder
                dies, the lock is free after at most this.
            wait: how long to wait for others; None (the default) for ever, 0 not at all.
            shared: hold it together with other shared holders.
            limit: hold it together with so many at most; see `semaphore`.
            owner: by default the current task. An owner is not re-entrant: one that waits for a
                lock which it holds itself is refused with `Deadlock`.
            on_lost: called once if the lease is lost, with the `LockLost`.
        """
        return Lock(
            self._core,
            name,
            ttl=ttl,
            wait=wait,
            shared=shared,
            limit=limit,
            owner=owner,
            on_lost=on_lost,
        )

    def semaphore(
        self,
        name: str,
        limit: int,
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> Lock:
        """Return a permit of a semaphore with `limit` permits; otherwise as `lock`.

        The limit is fixed while anybody holds or awaits a permit; another one is refused with
        `LimitMismatch`. An owner holds one permit at a time.
        """
        return Lock(self._core, name, ttl=ttl, wait=wait, limit=limit, owner=owner, on_lost=on_lost)

    def acquire_many(
        self,
        names: Iterable[str],
        *,
        ttl: Duration = 10.0,
        wait: Wait = None,
        shared: bool = False,
        owner: str | None = None,
        on_lost: OnLost | None = None,
    ) -> LockSet:
        """Return several locks (up to 64) that are taken in one step, all or none."""
        return LockSet(
            self._core, names, ttl=ttl, wait=wait, shared=shared, owner=owner, on_lost=on_lost
        )

    def session(self, *, ttl: Duration = 10.0, on_lost: OnLost | None = None) -> Session:
        """Return a session: one lease, renewed by one call, for many locks."""
        return Session(self._core, ttl=ttl, on_lost=on_lost)

    async def lock_info(self, name: str) -> LockInfo:
        """Return who holds a lock and who waits; linearizable."""
        return await self._core.lock_info(name)

    def locks(self, prefix: str = "") -> AsyncGenerator[LockInfo, None]:
        """Yield the locks that somebody holds or awaits, by name; each page is linearizable."""
        return self._core.list_locks(prefix)

    def watch(self, name: str) -> AsyncGenerator[LockInfo, None]:
        """Yield the state of a lock now and after changes, until the caller stops.

        Changes that follow each other quickly may be seen as one. Lost connections are made anew.
        """
        return watch_lock(self._core, name)

    # --- Queues -----------------------------------------------------------------------------

    def queue(self, name: str) -> Queue:
        """Return a queue, to push messages to and to claim them from; see `Queue`.

        The name has up to 512 bytes; slashes are part of it.
        """
        return Queue(self._core, name)

    def queues(self, prefix: str = "") -> AsyncGenerator[str, None]:
        """Yield the names of queues in the order of their bytes."""
        return list_queues(self._core, prefix)

    # --- The cache --------------------------------------------------------------------------

    @property
    def cache(self) -> Cache:
        """The cache: values by key, the same for everyone at every moment; see `Cache`."""
        return self._cache

    # --- Recipes ----------------------------------------------------------------------------

    def election(
        self,
        name: str,
        *,
        ttl: Duration = 10.0,
        candidate: str | None = None,
        on_elected: Callable[[Election], object] | None = None,
        on_lost: OnLost | None = None,
    ) -> Election:
        """Return a candidate in the election of a leader; see `Election`.

        Args:
            name: candidates of the same name stand against each other.
            ttl: after a leader died, another one is elected within this.
            candidate: what others see as the leader's name; by default the client's id.
            on_elected: called each time this candidate becomes the leader.
            on_lost: called each time it stops being the leader against its will.
        """
        return Election(
            self._core,
            name,
            ttl=ttl,
            candidate=candidate,
            on_elected=on_elected,
            on_lost=on_lost,
        )

    def barrier(self, name: str, parties: int, *, ttl: Duration = 10.0) -> Barrier:
        """Return a barrier at which `parties` callers wait for each other; see `Barrier`."""
        return Barrier(self._core, name, parties, ttl=ttl)

    def latch(self, name: str, count: int = 1, *, keep: Duration = 86_400.0) -> Latch:
        """Return a latch that opens when it was counted down `count` times; see `Latch`."""
        return Latch(self._core, name, count, keep=keep)

    # --- The cluster ------------------------------------------------------------------------

    async def status(self, url: str | None = None) -> ClusterStatus:
        """Return the view of any node, or of the one at `url`."""
        return await self._core.transport.status(url)

    # --- Life -------------------------------------------------------------------------------

    async def close(self) -> None:
        """End everything and close all connections.

        Locks that are still held are lost: their bodies are cancelled, and they are free when
        their leases end.
        """
        closing = asyncio.get_running_loop().create_task(self._core.close())
        await asyncio.shield(closing)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
