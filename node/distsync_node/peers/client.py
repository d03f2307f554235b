"""The sending side of node-to-node HTTP: keep-alive connections, a deadline on everything."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

import aiohttp

from distsync_node.peers import keepalive
from distsync_node.peers.outbound import PeerUnreachable, Target
from distsync_node.peers.sharing import ReplyT, SharedRequests
from distsync_node.peers.wire import ATTEMPT_HEADER, SENDER_HEADER

CONNECT_SECONDS = 1.0
LOOKUP_SECONDS = 3.0  # for a name and a connection together, where the call itself has no limit


def _probed_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    connection = socket.socket(family, kind, protocol)
    keepalive.probe(connection)
    return connection


class PeerClient:
    """POSTs msgpack to other nodes. DNS is asked at each new connection: pods change addresses."""

    def __init__(self, secret: str, sender: str) -> None:
        self._secret = secret
        self._sender = sender
        self._headers = {
            "Authorization": f"Bearer {secret}",
            "Content-Type": "application/msgpack",
            SENDER_HEADER: sender,
        }
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> PeerClient:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, use_dns_cache=False, keepalive_timeout=60, socket_factory=_probed_socket
            ),
            headers=self._headers,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def target(self, url: str) -> Target:
        """Return where a node listens, for what goes below HTTP clients."""
        return Target(url, self._secret, self._sender)

    def shared(
        self, path: str, decode: Callable[[bytes], Sequence[ReplyT]]
    ) -> SharedRequests[ReplyT]:
        """Return a way of calls to one node that share requests to `path`; see `sharing`."""
        return SharedRequests(self.target, path, decode)

    async def post(
        self,
        url: str,
        body: bytes,
        *,
        timeout_seconds: float | None,
        on_attempt: Callable[[int], object] | None = None,
    ) -> bytes:
        """POST and return the body of a 200.

        `on_attempt` is told the attempt number when the peer sends it ahead of the answer.

        Raises:
            PeerUnreachable: no connection, no answer in time, or another status.
        """
        if self._session is None or self._session.closed:
            raise PeerUnreachable("the peer client is closed", sent=False)
        # Without a connection nothing was sent. That is only known if it is said in time.
        timeout = aiohttp.ClientTimeout(
            total=timeout_seconds,
            connect=LOOKUP_SECONDS if timeout_seconds is None else timeout_seconds * 0.9,
            sock_connect=CONNECT_SECONDS,
        )
        try:
            async with self._session.post(url, data=body, timeout=timeout) as response:
                if on_attempt is not None and ATTEMPT_HEADER in response.headers:
                    on_attempt(int(response.headers[ATTEMPT_HEADER]))
                content = await response.read()
                if response.status != 200:
                    # It refused (4xx), or failed at an unknown point (5xx).
                    failed = response.status >= 500
                    raise PeerUnreachable(f"{url} answered {response.status}", sent=failed)
                return content
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
            aiohttp.InvalidURL,
            UnicodeError,  # of a name that cannot be resolved
        ) as error:
            raise PeerUnreachable(f"{url}: {error}", sent=False) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerUnreachable(f"{url}: {error!r}", sent=True) from error
