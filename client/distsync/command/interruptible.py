"""Commands that wait for as long as it takes, and end with Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, but no Ctrl-C is lost.

    A signal that comes just before the event loop goes to sleep does not wake it, and Python looks
    at it only when something else does. Once the loop watches any signal, all of them wake it.
    """

    async def watched() -> T:
        with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: no signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, lambda: None)
        return await work

    return asyncio.run(watched())
