"""Watching a lock: an event stream that is opened again when it breaks off."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from distsync.clock import sleep_until
from distsync.core import Core, lock_path
from distsync.errors import ClientClosed, OutcomeUnknown, Unavailable
from distsync.models import LockInfo

__all__ = ["watch_lock"]

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_decode_lock = msgspec.json.Decoder(LockInfo).decode


async def watch_lock(core: Core, name: str) -> AsyncGenerator[LockInfo, None]:
    """Yield the state of a lock at the start, after changes, and after each reconnection.

    Raises:
        Unavailable: no node could be reached for the client's timeout.
        DistSyncError: the node refused.
    """
    path = f"{lock_path(name)}/watch"
    pause = _FIRST_PAUSE_SECONDS
    give_up_at = core.clock.now() + core.transport.timeout_seconds
    while True:
        try:
            async with aclosing(_events(core, path)) as events:
                async for data in events:
                    yield _decode_lock(data)
                    pause = _FIRST_PAUSE_SECONDS
                    give_up_at = core.clock.now() + core.transport.timeout_seconds
        except ClientClosed:
            raise
        except (Unavailable, OutcomeUnknown):
            if core.clock.now() >= give_up_at:
                raise
        await sleep_until(core.clock, core.clock.now() + pause * (0.5 + random.random() / 2))
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _events(core: Core, path: str) -> AsyncGenerator[bytes, None]:
    """Yield the data of each server-sent event (WHATWG HTML, section 9.2)."""
    data: list[bytes] = []
    async with aclosing(core.transport.stream(path)) as lines:
        async for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data.clear()
