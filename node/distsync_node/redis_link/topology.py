"""Which server a key is on, and a connection to it that is made again when it is lost.

One server by itself; the primary that Sentinels name; or the nodes of a Redis Cluster, each of
which has some of the 16,384 slots. In all three a caller asks for the link of a key.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import hiredis

from distsync_node.errors import RedisUnavailable
from distsync_node.redis_link.address import Kind, RedisAddress
from distsync_node.redis_link.fitness import Unfit, check_server, refusal
from distsync_node.redis_link.link import (
    Credentials,
    Endpoint,
    Link,
    LinkLost,
    connect,
    pack_command,
)

logger = logging.getLogger(__name__)

SLOTS: Final = 16_384
LINKS_WITH_WAIT: Final = 4  # a WAIT holds its connection
FIRST_BACK_OFF_S: Final = 0.05
LONGEST_BACK_OFF_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long is waited for a server, in seconds."""

    connect_s: float = 2.0
    stall_s: float = 3.0  # without any answer while calls are in flight: the connection is given up


Prepare = Callable[[Link], Awaitable[None]]
"""What is done on each new connection before it is used."""


class Topology(Protocol):
    """Where keys are."""

    async def link(self, key: bytes, deadline: float, /, *, waits: bool) -> Link:
        """Return a link to the server of a key. `waits`: one that waits for replicas, if asked for.

        Raises:
            RedisUnavailable: there is none by the deadline (loop time).
        """

    def moved(self, error: str, /) -> None:
        """Take note that a server says it does not have a slot, or is no primary any more."""

    async def asked(self, error: str, deadline: float, /) -> Link:
        """Return a link to the server that an ASK names."""

    async def check(self) -> None:
        """Reach every server once.

        Raises:
            Unfit: one must not be used as it is.
            RedisUnavailable: one cannot be reached.
        """

    async def close(self) -> None:
        """End all connections."""


class Server:
    """The links to one server: one, or with `replicas` one for reads and some that wait."""

    def __init__(
        self,
        locate: Callable[[], Awaitable[Endpoint]],
        credentials: Credentials,
        timing: Timing,
        prepare: Prepare,
        replicas: int = 0,
    ) -> None:
        self._locate = locate
        self._credentials = credentials
        self._timing = timing
        self._prepare = prepare
        self._replicas = replicas
        self._links: list[Link | None] = [None] * (1 + (LINKS_WITH_WAIT if replicas else 0))
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._back_off_s = 0.0
        self._failure: Exception | None = None
        self._is_closed = False

    async def link(self, deadline: float, *, waits: bool = False) -> Link:
        """Return a link that is up, waiting for one until the deadline."""
        index = self._index(waits=waits)
        link = self._links[index]
        if link is not None and not link.is_lost:
            return link
        return await self._connected(index, deadline)

    def drop(self, reason: str) -> None:
        """Give up the connections: the server is not the one that is looked for any more."""
        for link in self._links:
            if link is not None:
                link.close(reason)

    async def check(self) -> None:
        """Connect once.

        Raises:
            Unfit, RedisUnavailable
        """
        try:
            await self._open(0)
        except Unfit:
            raise
        except Exception as error:  # as in `_attempt`
            raise RedisUnavailable(f"redis cannot be reached: {_reason(error)}") from None

    async def close(self) -> None:
        """End the connections and the attempts to make one; who waits for one is refused."""
        self._is_closed = True
        for task in self._connecting.values():
            task.cancel()
        await asyncio.gather(*self._connecting.values(), return_exceptions=True)
        self._connecting.clear()
        self.drop("closed")

    def _index(self, *, waits: bool) -> int:
        if not self._replicas or not waits:
            return 0

        def load(index: int) -> int:
            link = self._links[index]
            return 0 if link is None or link.is_lost else link.load

        return min(range(1, len(self._links)), key=load)

    async def _connected(self, index: int, deadline: float) -> Link:
        loop = asyncio.get_running_loop()
        while True:
            link = self._links[index]
            if link is not None and not link.is_lost:
                return link
            if self._is_closed:
                raise RedisUnavailable("the connection to redis was closed")
            left_s = deadline - loop.time()
            if left_s <= 0:
                reason = _reason(self._failure) if self._failure else "no answer yet"
                raise RedisUnavailable(f"redis cannot be reached: {reason}")
            task = self._connecting.get(index)
            if task is None:
                task = asyncio.create_task(self._attempt(index))
                self._connecting[index] = task
            await asyncio.wait([task], timeout=left_s)

    async def _attempt(self, index: int) -> None:
        try:
            await asyncio.sleep(self._back_off_s)
            await self._open(index)
            self._back_off_s, self._failure = 0.0, None
        except Exception as error:  # what a strange server causes, too: it is asked again later
            if self._failure is None or _reason(self._failure) != _reason(error):
                logger.warning("redis is not available: %s", _reason(error))
            self._failure = error
            self._back_off_s = min(LONGEST_BACK_OFF_S, max(FIRST_BACK_OFF_S, self._back_off_s * 2))
        finally:
            del self._connecting[index]

    async def _open(self, index: int) -> None:
        endpoint = await self._locate()
        timing = self._timing
        try:
            link = await connect(
                endpoint, self._credentials, connect_s=timing.connect_s, stall_s=timing.stall_s
            )
        except hiredis.ReplyError as error:
            raise refusal(error, endpoint, self._credentials) or error from None
        try:
            async with asyncio.timeout(timing.connect_s):
                await check_server(link, endpoint)
                await self._prepare(link)
        except BaseException:
            link.close("not used")
            raise
        if index:
            link.require_replicas(self._replicas)
        old = self._links[index]
        if old is not None:
            old.close("replaced")
        self._links[index] = link


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


class SinglePrimary:
    """One server, or the one that Sentinels name."""

    def __init__(self, address: RedisAddress, timing: Timing, prepare: Prepare) -> None:
        self._address = address
        self._timing = timing
        locate = self._ask_sentinels if address.kind is Kind.SENTINEL else self._named
        self._server = Server(locate, address.credentials, timing, prepare, address.replicas)

    async def link(self, _key: bytes, deadline: float, *, waits: bool) -> Link:
        """Return the link of all keys."""
        return await self._server.link(deadline, waits=waits)

    def moved(self, error: str) -> None:
        """Look for the primary again."""
        self._server.drop(error)

    async def asked(self, error: str, _deadline: float) -> Link:
        """A server by itself has no ASK to give."""
        raise RedisUnavailable(
            f"redis answers {error!r}: it is part of a cluster, use redis+cluster"
        )

    async def check(self) -> None:
        """Reach the server once."""
        await self._server.check()

    async def close(self) -> None:
        """End all connections."""
        await self._server.close()

    async def _named(self) -> Endpoint:
        return self._address.endpoints[0]

    async def _ask_sentinels(self) -> Endpoint:
        """Return the primary that the first Sentinel to answer names."""
        service = self._address.service
        command = pack_command("SENTINEL", "get-master-addr-by-name", service)
        timing, failures = self._timing, []
        for sentinel in self._address.endpoints:
            try:
                link = await connect(
                    sentinel,
                    self._address.sentinel_credentials,
                    connect_s=timing.connect_s,
                    stall_s=timing.stall_s,
                )
                try:
                    reply = await link.call(command)
                finally:
                    link.close("asked")
            except (OSError, TimeoutError, LinkLost, hiredis.ReplyError) as error:
                failures.append(f"{sentinel}: {_reason(error)}")
                continue
            if isinstance(reply, list):
                return Endpoint(host=reply[0].decode(), port=int(reply[1]))
            failures.append(f"{sentinel}: knows no service {service!r}")
        raise OSError(f"no sentinel names the primary ({'; '.join(failures)})")


class Cluster:
    """The primaries of a Redis Cluster."""

    def __init__(self, address: RedisAddress, timing: Timing, prepare: Prepare) -> None:
        self._address = address
        self._timing = timing
        self._prepare = prepare
        self._servers: dict[Endpoint, Server] = {}
        self._owners: list[Endpoint | None] = []
        self._refreshing: asyncio.Task[None] | None = None

    async def link(self, key: bytes, deadline: float, *, waits: bool) -> Link:
        """Return the link of the node that has the key's slot."""
        slot = key_slot(key)
        loop = asyncio.get_running_loop()
        failure = "the slots are not known"
        while True:
            endpoint = self._owners[slot] if self._owners else None
            if endpoint is not None:
                # A node that does not answer at once may have lost its slots to another.
                patience = min(deadline, loop.time() + FIRST_BACK_OFF_S * 4)
                try:
                    return await self._server(endpoint).link(patience, waits=waits)
                except RedisUnavailable as error:
                    failure = error.detail
            if loop.time() >= deadline:
                raise RedisUnavailable(f"redis cluster, slot {slot}: {failure}")
            await self._refresh(deadline)

    def moved(self, _error: str) -> None:
        """Ask again who has which slot."""
        self._owners = []

    async def asked(self, error: str, deadline: float) -> Link:
        """Return the link of the node that a slot is moving to."""
        return await self._server(_endpoint_of(error)).link(deadline)

    async def check(self) -> None:
        """Reach every primary once."""
        owners = await self._ask_owners()
        for endpoint in {owner for owner in owners if owner is not None}:
            await self._server(endpoint).check()
        self._owners = owners

    async def close(self) -> None:
        """End all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        for server in self._servers.values():
            await server.close()
        self._servers.clear()

    def _server(self, endpoint: Endpoint) -> Server:
        server = self._servers.get(endpoint)
        if server is None:

            async def locate() -> Endpoint:
                return endpoint

            server = Server(
                locate,
                self._address.credentials,
                self._timing,
                self._prepare,
                self._address.replicas,
            )
            self._servers[endpoint] = server
        return server

    async def _refresh(self, deadline: float) -> None:
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._learn_owners())
        left_s = max(0.0, deadline - asyncio.get_running_loop().time())
        await asyncio.wait([self._refreshing], timeout=left_s)

    async def _learn_owners(self) -> None:
        try:
            self._owners = await self._ask_owners()
            wanted = {owner for owner in self._owners if owner is not None}
            for endpoint in self._servers.keys() - wanted:
                await self._servers.pop(endpoint).close()
        except (RedisUnavailable, Unfit) as error:
            logger.warning("redis cluster: %s", error)
        finally:
            await asyncio.sleep(FIRST_BACK_OFF_S)  # for all who wait: no storm of questions
            self._refreshing = None

    async def _ask_owners(self) -> list[Endpoint | None]:
        failures = []
        for endpoint in (*self._servers, *self._address.endpoints):
            try:
                link = await connect(
                    endpoint,
                    self._address.credentials,
                    connect_s=self._timing.connect_s,
                    stall_s=self._timing.stall_s,
                )
                try:
                    reply = await link.call(pack_command("CLUSTER", "SLOTS"))
                finally:
                    link.close("asked")
            except hiredis.ReplyError as error:
                unfit = refusal(error, endpoint, self._address.credentials)
                if unfit is not None:
                    raise unfit from None
                failures.append(f"{endpoint}: {error}")
                continue
            except (OSError, TimeoutError, LinkLost) as error:
                failures.append(f"{endpoint}: {_reason(error)}")
                continue
            if isinstance(reply, hiredis.ReplyError):
                raise Unfit(f"redis at {endpoint} is not part of a cluster ({reply})")
            return _owners_of(reply, endpoint)
        raise RedisUnavailable(f"no node of the redis cluster answers ({'; '.join(failures)})")


def _owners_of(slots_reply: Any, asked: Endpoint) -> list[Endpoint | None]:
    owners: list[Endpoint | None] = [None] * SLOTS
    for first, last, (host, port, *_), *_ in slots_reply:
        name = host.decode() if host else ""
        endpoint = Endpoint(host=asked.host if name in ("", "?") else name, port=port)
        for slot in range(first, last + 1):
            owners[slot] = endpoint
    return owners


def _endpoint_of(redirection: str) -> Endpoint:
    """Return the node that `MOVED 42 host:port` or `ASK 42 host:port` names."""
    host, _, port = redirection.split()[2].rpartition(":")
    return Endpoint(host=host, port=int(port))


def key_slot(key: bytes) -> int:
    """Return the slot of a key (Redis Cluster specification: CRC16 of the hash tag)."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def find_topology(address: RedisAddress, timing: Timing, prepare: Prepare) -> Topology:
    """Return the topology an address speaks of; nothing is connected yet."""
    if address.kind is Kind.CLUSTER:
        return Cluster(address, timing, prepare)
    return SinglePrimary(address, timing, prepare)
