"""A peer port on loopback, as a node has one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import uvicorn

from distsync_node.api.server import HttpProtocol
from distsync_node.peers.inbound import Receiver, message_protocol


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _nothing_else(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("messages do not go through ASGI")


class PeerPort:
    """It has its address at once, and answers from `serve` on."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(
        self, receivers: Mapping[str, Receiver], secret: str, app: Any = _nothing_else
    ) -> None:
        config = uvicorn.Config(
            app,
            loop="none",
            interface="asgi3",
            http=message_protocol(HttpProtocol, receivers, secret),
            lifespan="off",
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self.server = _Server(config)
        self._serving = asyncio.create_task(self.server.serve(sockets=[self.listener]))

    async def end(self) -> None:
        self.server.should_exit = True
        await self._serving
        self.listener.close()
