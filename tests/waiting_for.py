"""Waiting in tests for what nothing announces; for tests without asyncio, see `process.running`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def eventually(
    condition: Callable[[], object], what: str = "", *, within_seconds: float = 20.0
) -> None:
    deadline = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what or condition}"
        await asyncio.sleep(0.002)
