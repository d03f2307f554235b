"""One question for all who ask it at a time.

Guarantees: whoever asks is answered by a question that began after that. While one is under way
all who come share the next. Who gives up leaves the others with theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """Asks `ask`, never twice at a time."""

    def __init__(self, ask: Callable[[], Awaitable[Answer]]) -> None:
        self._ask = ask
        self._running: asyncio.Task[Answer] | None = None
        self._next: asyncio.Task[Answer] | None = None

    async def answer(self) -> Answer:
        """Return the answer, or raise what it came to."""
        task = self._next
        if task is None:
            task = asyncio.create_task(self._after(self._running))
            if self._running is None:
                self._running = task
            else:
                self._next = task
        return await asyncio.shield(task)

    async def _after(self, before: asyncio.Task[Answer] | None) -> Answer:
        if before is not None:
            await asyncio.wait((before,))
            self._running, self._next = self._next, None
        try:
            return await self._ask()
        finally:
            if self._next is None:
                self._running = None
