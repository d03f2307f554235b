"""Connections beyond the share of the open files that clients have.

A node that is only popular must not look dead: whoever watches it would start it again, and its
crowd would go to the next. So a connection beyond the share is read once. If what comes first is a
probe it stays; anything else, and silence, ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_SECONDS = 1.0
PROBES = ("/healthz", "/readyz", "/metrics")

_BEGINNINGS = tuple(f"GET {path} ".encode() for path in PROBES)


class ProbeOnly(asyncio.Protocol):
    """Takes the place of a connection's protocol until something has come."""

    def __init__(
        self,
        transport: asyncio.Transport,
        protocol: asyncio.Protocol,
        refuse: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._protocol = protocol
        self._refuse = refuse
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE_SECONDS, refuse)
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._timer.cancel()
        if data.startswith(_BEGINNINGS):
            self._transport.set_protocol(self._protocol)
            self._protocol.data_received(data)
        else:
            self._refuse()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._timer.cancel()
        self._protocol.connection_lost(exc)
