"""Failures of DistSync as dramatiq knows them.

dramatiq repeats what ends with its `ConnectionFailed` or `ConnectionClosed`: a worker takes up its
queues again, and acknowledges once more. So these stand for everything that may succeed later: the
first where nothing was done, the second where it may have been. The cause is the DistSync error.
What cannot succeed later stays what it is, and so do `QueueFull` and `RedisFull`, which say more.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from contextlib import contextmanager

from dramatiq.errors import ConnectionClosed, ConnectionFailed

from distsync.errors import (
    ClientClosed,
    DistSyncError,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    ServerError,
)

__all__ = ["may_have_been_done", "may_succeed_later", "translated"]


@contextmanager
def translated() -> Iterator[None]:
    """Raise dramatiq's errors instead of ours; see above."""
    try:
        yield
    except concurrent.futures.CancelledError as error:
        raise ConnectionClosed("DistSync: the client was closed meanwhile") from error
    except (QueueFull, RedisFull):
        raise
    except DistSyncError as error:
        if not may_succeed_later(error):
            raise
        kind = ConnectionClosed if may_have_been_done(error) else ConnectionFailed
        raise kind(f"DistSync: {error.detail}") from error


def may_succeed_later(error: DistSyncError) -> bool:
    """Whether the same call may succeed without a change (of a closed client: through another)."""
    return error.retriable or isinstance(error, (ClientClosed, ServerError))


def may_have_been_done(error: DistSyncError) -> bool:
    """Whether a call that ended like this may have changed something."""
    return isinstance(error, (OutcomeUnknown, ServerError))
