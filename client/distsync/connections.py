"""One HTTP exchange with one node, and what its end says about the request.

The difference that everything above rests on: a request that was never sent did nothing; one that
was sent and not answered may have been done.
"""

from __future__ import annotations

import asyncio
import io
import os
import socket
import ssl as ssl_module
from collections.abc import AsyncGenerator, Mapping
from functools import lru_cache
from typing import Any, Final

import aiohttp
import msgspec
from yarl import URL

from distsync.errors import ClientClosed, DistSyncError, ServerError, error_from_problem
from distsync.identity import Identity
from distsync.models import Problem
from distsync.nodes import Endpoint

__all__ = [
    "NO_CONNECTION",
    "Answer",
    "BrokenOff",
    "Connections",
    "EventLines",
    "MaybeDone",
    "NotDone",
    "limits_of_a_call",
    "refused",
    "why_not_connected",
]

CONNECT_SECONDS: Final = 1.0
LOOKUP_SECONDS: Final = 3.0  # for a name and a connection together
NO_CONNECTION: Final = "no connection in time (finding its name, or connecting)"
_POST_HEADERS = {"Content-Type": "application/json"}
_STREAM_HEADERS = {"Accept": "text/event-stream"}
_KEEPALIVE_OPTIONS = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_decode_problem = msgspec.json.Decoder(Problem).decode
_LARGE_BYTES: Final = 512 * 1024  # beyond this a body is sent in pieces
_OF_A_PROXY = frozenset({500, 502, 503, 504})


class NotDone(Exception):
    """The request did nothing."""


class MaybeDone(Exception):
    """The request may have been done."""


class BrokenOff(MaybeDone):
    """The same, because the connection ended; it may have been an old one."""


class Answer(msgspec.Struct, frozen=True):
    """A success, and where the node said the leader and the owner of what was asked for are."""

    content: bytes
    leader: str | None
    owner: str | None
    headers: Mapping[str, str]


class Connections:
    """The connections of one client to all nodes."""

    def __init__(self, identity: Identity, *, ssl: ssl_module.SSLContext | None = None) -> None:
        """`ssl` is for https URLs; without it the system's certificates count."""
        self._identity = identity
        self._ssl = ssl
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def exchange(
        self,
        endpoint: Endpoint,
        method: str,
        path: str,
        body: bytes | None,
        seconds: float,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request and return its success.

        `headers` take the place of the usual ones.

        Raises:
            NotDone: it was not sent, or a node said 503.
            MaybeDone: it was sent, and no answer says what became of it.
            DistSyncError: what the node answered; `fields["leader_url"]` where the leader is.
        """
        session = self._open()
        try:
            async with session.request(
                method,
                endpoint.at(path) if body is not None else URL(endpoint.url + path, encoded=True),
                data=io.BytesIO(body) if body and len(body) > _LARGE_BYTES else body,
                headers=headers or (_POST_HEADERS if body is not None else None),
                timeout=limits_of_a_call(seconds),
                allow_redirects=False,
            ) as response:
                content = await response.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotDone(describe(error)) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise BrokenOff(describe(error)) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise MaybeDone(describe(error)) from error
        leader = response.headers.get("Distsync-Leader")
        if response.status == 200:
            return Answer(content, leader, response.headers.get("Distsync-Owner"), response.headers)
        raise _error_of(response.status, content, leader)

    async def lines(self, endpoint: Endpoint, path: str, seconds: float) -> EventLines:
        """Open an event stream; the answer must begin within `seconds`.

        Raises: as `exchange`.
        """
        session = self._open()
        try:
            async with asyncio.timeout(seconds):
                response = await session.get(
                    URL(endpoint.url + path, encoded=True),
                    headers=_STREAM_HEADERS,
                    allow_redirects=False,
                )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NotDone(describe(error)) from error
        if response.status == 200:
            return EventLines(response)
        async with response:
            content = await response.read()
        raise _error_of(response.status, content, response.headers.get("Distsync-Leader"))

    async def close(self) -> None:
        """Close every connection."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        loop = asyncio.get_running_loop()
        if self._closed:
            raise ClientClosed("this client has been closed")
        if self._session is None:
            self._loop = loop
            self._session = self._new_session()
        elif loop is not self._loop:
            raise RuntimeError("an AsyncClient belongs to the event loop it was first used in")
        return self._session

    def _new_session(self) -> aiohttp.ClientSession:
        # No limit on connections: each waiting acquire occupies one, and a renewal that queued
        # behind them would lose a lock.
        connector = aiohttp.TCPConnector(
            limit=0,
            use_dns_cache=False,
            keepalive_timeout=30.0,
            ssl=True if self._ssl is None else self._ssl,
            socket_factory=_kept_alive_socket,
        )
        session = aiohttp.ClientSession(
            connector=connector,
            headers={"Distsync-Client": self._identity.client_id, "Accept": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=LOOKUP_SECONDS, sock_connect=CONNECT_SECONDS
            ),
        )
        # Of itself aiohttp sends a PUT or a DELETE again whose connection broke. Whether that may
        # be done twice is not for it to say; `test_a_write_in_doubt_is_sent_once` watches this.
        session._retry_connection = False
        return session


@lru_cache(maxsize=64)
def limits_of_a_call(seconds: float) -> aiohttp.ClientTimeout:
    """Return aiohttp's limits for a call of `seconds`."""
    # Without a connection nothing was sent. That is only known if it is said before time is up.
    return aiohttp.ClientTimeout(
        total=seconds, connect=min(LOOKUP_SECONDS, seconds * 0.9), sock_connect=CONNECT_SECONDS
    )


class EventLines:
    """The lines of an open event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.leader: str | None = response.headers.get("Distsync-Leader")

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            async for line in self._response.content:
                yield line.rstrip(b"\r\n")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenOff(describe(error)) from error

    def close(self) -> None:
        """End the stream; a reader that waits gets `BrokenOff`."""
        self._response.close()


def describe(error: BaseException) -> str:
    """Return what went wrong, in a few words."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return NO_CONNECTION
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"{error.host}:{error.port}: {why_not_connected(error)}"
    return str(error) or type(error).__name__


def why_not_connected(error: aiohttp.ClientConnectorError) -> str:
    """Return what the system said when no connection came about."""
    # aiohttp's own text names host and port again; the resolver's numbers are negative.
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.os_error.strerror or str(error.os_error)


def _error_of(status: int, content: bytes, leader: str | None) -> Exception:
    """Return what an unsuccessful answer means."""
    try:
        problem = _decode_problem(content)
    except msgspec.MsgspecError:
        # Not a node's answer. A proxy's 5xx says nothing about whether the node got the request.
        text = content[:200].decode("utf-8", "replace")
        if status in _OF_A_PROXY:
            return MaybeDone(f"HTTP {status} that is no node's answer: {text}")
        code, detail, retriable, fields = "", f"HTTP {status}: {text}", False, _fields(None, leader)
    else:
        code, detail, retriable = problem.code, problem.detail, problem.retriable
        fields = _fields(problem, leader)
    error = error_from_problem(
        status=status, code=code, detail=detail, retriable=retriable, fields=fields
    )
    if isinstance(error, ServerError) or status not in (503, 504):
        return error
    kind = NotDone if status == 503 else MaybeDone
    wrapped = kind(f"{error.code}: {error.detail}")
    wrapped.__cause__ = error
    return wrapped


def _fields(problem: Problem | None, leader: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {} if leader is None else {"leader_url": leader}
    if problem is not None:
        for name in (
            "request_id",
            "field",
            "leader",
            "cycle",
            "limit",
            "stale",
            "newest",
            "version",
            "errors",
        ):
            if (value := getattr(problem, name)) is not None:
                found[name] = value
    return found


def _kept_alive_socket(
    address: tuple[Any, ...],
) -> socket.socket:
    """Make a socket that keeps its connection known to NAT and notices a machine that is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_OPTIONS.items():
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def refused(error: Exception) -> DistSyncError | None:
    """Return what the node said, where an attempt failed because of an answer."""
    cause = error.__cause__
    return cause if isinstance(cause, DistSyncError) else None
