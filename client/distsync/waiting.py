"""Waiting for longer than the cluster lets one request wait.

The cluster holds a waiting request for ten minutes at most, so a longer wait is made of several.
Within one the place in the queue is kept, whatever happens to nodes and connections; a new one
joins the end of the queue.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar

from distsync.core import Core
from distsync.durations import Duration, to_seconds
from distsync.errors import DistSyncError, LockLost, WaitTimeout

__all__ = ["DEFAULT", "Default", "Wait", "in_pieces", "seconds_or", "until_of", "wait_seconds"]

T = TypeVar("T")

Wait: TypeAlias = Duration | None
"""How long to wait: 0 does not, None waits for ever."""

_LONGEST_SECONDS: Final = 600.0
_CANCELLED: Final = "cancelled"


class Default:
    """Stands for the wait that was given when a lock was made."""


DEFAULT: Final = Default()


def wait_seconds(wait: Wait) -> float | None:
    """Return how long to wait in seconds; None is for ever."""
    return None if wait is None else to_seconds(wait, "wait")


def seconds_or(default: float | None, wait: Wait | Default) -> float | None:
    """Return how long to wait in seconds, `default` unless something else is asked for."""
    return default if isinstance(wait, Default) else wait_seconds(wait)


def until_of(core: Core, seconds: float | None) -> float | None:
    """Return when a wait that begins now is over; None is never."""
    return None if seconds is None else core.clock.now() + seconds


async def in_pieces(core: Core, until: float | None, ask: Callable[[float], Awaitable[T]]) -> T:
    """Call `ask` with the seconds it may wait, until it succeeds or `until` has passed.

    Each call of `ask` is a new request. One whose grant had come and gone before any answer did,
    or whose wait the cluster cancelled because its connection broke, is asked anew as well.
    """
    give_up_at = core.clock.now() + core.transport.timeout_seconds
    while True:
        left = None if until is None else max(0.0, until - core.clock.now())
        try:
            return await ask(_LONGEST_SECONDS if left is None else min(left, _LONGEST_SECONDS))
        except WaitTimeout:
            if left is not None and left <= _LONGEST_SECONDS:
                raise
        except DistSyncError as error:
            if not isinstance(error, LockLost) and error.code != _CANCELLED:
                raise
            if until is not None and core.clock.now() >= max(until, give_up_at):
                raise
