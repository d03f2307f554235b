"""The client that commands use: it gives up soon, since somebody waits at a terminal."""

from __future__ import annotations

from typing import Final

from distsync.client import AsyncClient
from distsync.command.options import Options

__all__ = ["TIMEOUT_SECONDS", "connect"]

TIMEOUT_SECONDS: Final = 5.0


def connect(options: Options) -> AsyncClient:
    """Return a client of the cluster that gives up soon."""
    return AsyncClient(options.urls, timeout=TIMEOUT_SECONDS)
