"""The client that commands use: it gives up soon, since somebody waits at a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from distsync.client import AsyncClient
from distsync.command.options import Options

__all__ = ["TIMEOUT_SECONDS", "ask", "connect"]

TIMEOUT_SECONDS: Final = 5.0

T = TypeVar("T")


def connect(options: Options) -> AsyncClient:
    """Return a client of the cluster that gives up soon."""
    return AsyncClient(options.urls, timeout=TIMEOUT_SECONDS)


def ask(options: Options, question: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Return what a client answers, asked outside any event loop."""

    async def answer() -> T:
        async with connect(options) as client:
            return await question(client)

    return asyncio.run(answer())
