"""Watching a lock: an event stream that is opened again when it breaks off."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from distsync.clock import sleep_until
from distsync.core import Core
from distsync.errors import ClientClosed, DistSyncError, OutcomeUnknown, Unavailable
from distsync.models import LockInfo
from distsync.paths import lock_path

__all__ = ["Changes", "watch_lock"]

_log = logging.getLogger("distsync")

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
    patience = core.transport.timeout_seconds
    give_up_at = core.clock.now() + patience
    pause = _FIRST_PAUSE_SECONDS
    while True:
        is_open = False
        try:
            async with aclosing(_events(core, path)) as events:
                async for data in events:
                    is_open = True
                    yield _decode_lock(data)
        except ClientClosed:
            raise
        except (Unavailable, OutcomeUnknown):
            if not is_open and core.clock.now() >= give_up_at:
                raise
        if is_open:  # the outage begins now
            give_up_at = core.clock.now() + patience
            pause = _FIRST_PAUSE_SECONDS
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


class Changes:
    """Wakes whoever waits for a lock to change: by an event stream, and otherwise by time.

    The stream is a hint that may come late or break; what counts is read from the cluster anew
    after each wake-up.
    """

    def __init__(self, core: Core, name: str) -> None:
        self._core = core
        self._name = name
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.latest: LockInfo | None = None

    async def wait(self, until: float) -> None:
        """Return after a change, or at `until`."""
        timer = self._core.clock.call_at(until, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            timer.cancel()
            self._changed.clear()

    async def __aenter__(self) -> Changes:
        self._task = self._core.background.spawn(self._listen(), name=f"watch {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        while True:
            try:
                async with aclosing(watch_lock(self._core, self._name)) as states:
                    async for state in states:
                        self.latest = state
                        self._changed.set()
            except DistSyncError as error:
                _log.debug("%s cannot be watched now: %s", self._name, error)
                again = self._core.clock.now() + _LONGEST_PAUSE_SECONDS
                await sleep_until(self._core.clock, again)
