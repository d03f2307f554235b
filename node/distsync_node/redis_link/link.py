"""One connection to Redis, shared by all calls in flight on the node.

Calls made in one turn of the event loop leave in one write; replies come in order and each settles
its call. Nothing waits for the replies of what went before, so one connection carries as many calls
as Redis can serve. (Measured with 64 callers on one script, CPU of the node per call: redis.asyncio
one by one 69 to 84 microseconds, its pipelines 28 to 31, this 3 to 4.)

With `require_replicas`, what one turn of the loop collected is followed by a WAIT, and the calls
are settled only when so many replicas have it. A WAIT holds its connection, so the next write
leaves when it is answered. From Redis 7.2 on WAIT looks at what its connection has written: a call
that finds its work done by another has to write something, or it would be settled at once.

A call fails with `LinkLost`; `was_sent` says whether Redis may have executed it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import hiredis

MAX_CALLS_IN_FLIGHT: Final = 20_000
MAX_BUFFERED_BYTES: Final = 64 * 1024 * 1024  # that the server has not taken yet
MAX_WAITED_BYTES: Final = 8 * 1024 * 1024  # in one write with a WAIT behind it


class LinkLost(Exception):
    """The connection is gone. `was_sent`: whether Redis may have executed the call."""

    def __init__(self, reason: str, *, was_sent: bool) -> None:
        super().__init__(reason)
        self.was_sent = was_sent


class LinkBusy(Exception):
    """Too many calls are in flight; this one was not sent."""


class TooFewReplicas(Exception):
    """Redis executed the call, but not enough replicas have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a Redis server listens: a unix socket if `path` is given, else host and port."""

    host: str = ""
    port: int = 6379
    path: str = ""

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to present oneself to a server. Secrets are kept out of the representation."""

    username: str = ""
    password: str = field(default="", repr=False)
    database: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)


def pack_command(*arguments: bytes | str | int) -> bytes:
    """Return a command as Redis reads it."""
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


class Link(asyncio.Protocol):
    """A connection. Made by `connect`; of no use any more once `is_lost`."""

    def __init__(self, *, stall_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._stall_s = stall_s
        self._replicas = 0
        self._reader = hiredis.Reader(notEnoughData=_INCOMPLETE)
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._unsent_calls: list[asyncio.Future[Any]] = []
        self._sent: deque[asyncio.Future[Any]] = deque()
        self._unconfirmed: list[tuple[asyncio.Future[Any], Any]] = []
        self._flush_handle: asyncio.Handle | None = None
        self._stall_handle: asyncio.TimerHandle | None = None
        self._oldest_at = 0.0
        self._awaiting_replicas = False
        self.is_lost = False
        self.lost_reason = ""

    # The side of the callers.

    def call(self, command: bytes) -> asyncio.Future[Any]:
        """Send a packed command. The future gives the reply; error replies are values.

        Raises:
            LinkLost, LinkBusy: now, nothing was sent. The future may raise LinkLost,
            TooFewReplicas.
        """
        if self.is_lost:
            raise LinkLost(self.lost_reason, was_sent=False)
        if self.load >= MAX_CALLS_IN_FLIGHT or self._buffered_bytes() > MAX_BUFFERED_BYTES:
            raise LinkBusy
        future: asyncio.Future[Any] = self._loop.create_future()
        self._unsent.append(command)
        self._unsent_bytes += len(command)
        self._unsent_calls.append(future)
        if self._flush_handle is None and not self._awaiting_replicas:
            self._flush_handle = self._loop.call_soon(self._flush)
        return future

    async def call_all(self, commands: Sequence[bytes]) -> list[Any]:
        """Send commands together and return their replies.

        Raises:
            LinkLost, LinkBusy, TooFewReplicas
        """
        return await asyncio.gather(*[self.call(command) for command in commands])

    def require_replicas(self, count: int) -> None:
        """From now on settle calls only once `count` replicas have them; 0 for none."""
        self._replicas = count

    @property
    def load(self) -> int:
        """Calls that are not answered yet."""
        return len(self._sent) + len(self._unsent_calls) + len(self._unconfirmed)

    def close(self, reason: str = "closed") -> None:
        """End the connection; calls in flight fail."""
        self._lose(reason)

    # The side of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Settle the calls whose replies have come."""
        self._oldest_at = self._loop.time()
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._answer(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self._lose(f"the server does not speak the Redis protocol: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what was in flight."""
        self._lose(str(error) if error else "the server closed the connection")

    # Inside.

    def _buffered_bytes(self) -> int:
        held = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return held + self._unsent_bytes

    def _flush(self) -> None:
        self._flush_handle = None
        if self.is_lost or self._transport is None:
            return
        if not self._sent:
            self._oldest_at = self._loop.time()
        if self._replicas:
            self._flush_with_wait()
        else:
            self._sent.extend(self._unsent_calls)
            self._transport.write(b"".join(self._unsent))
            self._unsent, self._unsent_calls = [], []
            self._unsent_bytes = 0
        if self._stall_handle is None:
            self._stall_handle = self._loop.call_later(self._stall_s, self._check_stall)

    def _flush_with_wait(self) -> None:
        count, size = 0, 0
        for command in self._unsent:
            if count and size + len(command) > MAX_WAITED_BYTES:
                break
            count, size = count + 1, size + len(command)
        wait_ms = max(1, int(self._stall_s * 500))
        commands = [*self._unsent[:count], pack_command("WAIT", self._replicas, wait_ms)]
        self._sent.extend(self._unsent_calls[:count])
        self._unsent, self._unsent_calls = self._unsent[count:], self._unsent_calls[count:]
        self._unsent_bytes -= size
        self._awaiting_replicas = True
        if self._transport is not None:
            self._transport.write(b"".join(commands))

    def _answer(self, reply: Any) -> None:
        if self._awaiting_replicas:
            if self._sent:
                self._unconfirmed.append((self._sent.popleft(), reply))
            else:
                self._confirm(reply)
            return
        future = self._sent.popleft()
        if not future.done():
            future.set_result(reply)

    def _confirm(self, replicas: Any) -> None:
        confirmed, self._unconfirmed = self._unconfirmed, []
        self._awaiting_replicas = False
        enough = isinstance(replicas, int) and replicas >= self._replicas
        for future, reply in confirmed:
            if future.done():
                continue
            if enough or isinstance(reply, hiredis.ReplyError):
                future.set_result(reply)
            else:
                future.set_exception(TooFewReplicas(str(replicas)))
        if self._unsent_calls:
            self._flush()

    def _check_stall(self) -> None:
        self._stall_handle = None
        if self.is_lost or not (self._sent or self._awaiting_replicas):
            return
        silent_s = self._loop.time() - self._oldest_at
        if silent_s >= self._stall_s:
            self._lose(f"no answer for {self._stall_s:g} s")
            return
        self._stall_handle = self._loop.call_later(self._stall_s - silent_s, self._check_stall)

    def _lose(self, reason: str) -> None:
        if self.is_lost:
            return
        self.is_lost, self.lost_reason = True, reason
        for handle in (self._flush_handle, self._stall_handle):
            if handle is not None:
                handle.cancel()
        if self._transport is not None:
            self._transport.abort()
        sent = [*(future for future, _ in self._unconfirmed), *self._sent]
        for future in sent:
            if not future.done():
                future.set_exception(LinkLost(reason, was_sent=True))
        for future in self._unsent_calls:
            if not future.done():
                future.set_exception(LinkLost(reason, was_sent=False))
        self._unconfirmed, self._unsent, self._unsent_calls = [], [], []
        self._sent.clear()


_INCOMPLETE: Final = object()


async def connect(
    endpoint: Endpoint, credentials: Credentials, *, connect_s: float, stall_s: float
) -> Link:
    """Return a link that has presented itself.

    Raises:
        OSError, TimeoutError, LinkLost: the server cannot be reached.
        hiredis.ReplyError: it refused, as it said.
    """
    loop = asyncio.get_running_loop()

    def make() -> Link:
        return Link(stall_s=stall_s)

    async with asyncio.timeout(connect_s):
        if endpoint.path:
            _, link = await loop.create_unix_connection(make, endpoint.path)
        else:
            host, port, tls = endpoint.host, endpoint.port, credentials.tls
            _, link = await loop.create_connection(make, host, port, ssl=tls)
        try:
            for reply in await link.call_all(_greeting(credentials)):
                if isinstance(reply, hiredis.ReplyError):
                    raise reply
        except BaseException:
            link.close("the server did not take the greeting")
            raise
    return link


def _greeting(credentials: Credentials) -> list[bytes]:
    commands = []
    if credentials.username:
        commands.append(pack_command("AUTH", credentials.username, credentials.password))
    elif credentials.password:
        commands.append(pack_command("AUTH", credentials.password))
    if credentials.database:
        commands.append(pack_command("SELECT", credentials.database))
    commands.append(pack_command("PING"))
    return commands
