"""Cancelling the body of an `async with` when what it stands on is lost.

The way of `asyncio.timeout`: the task is cancelled, and when the cancellation comes out of the body
it is taken back and turned into the error of the loss. A cancellation that somebody else asked for
is never swallowed: as long as more was asked of the task than this guard asked, `CancelledError`
goes on. An error of the body's own always wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from distsync.errors import DistSyncError, LockLost, NotHolder

__all__ = ["BodyGuard", "give_back_at_exit", "tell_loss"]

_log = logging.getLogger("distsync")


class BodyGuard:
    """Guards the body of one `async with`, in the task that entered it."""

    __slots__ = ("_baseline", "_interrupted", "_task")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._baseline = 0
        self._interrupted = False

    def enter(self) -> None:
        """The body begins now, in this task."""
        if self._task is not None:
            raise RuntimeError("it is held by an `async with` already; make another object")
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("`async with` needs a task")
        self._task = task
        self._baseline = task.cancelling()
        self._interrupted = False

    def interrupt(self, reason: str) -> None:
        """Cancel the body, if it is running."""
        if self._task is not None and not self._interrupted:
            self._interrupted = True
            self._task.cancel(reason)

    async def leave(self, error: BaseException | None) -> bool:
        """The body has ended; return whether `error` is this guard's own cancellation.

        Raises:
            asyncio.CancelledError: the task was cancelled from elsewhere as well.
        """
        task, self._task = self._task, None
        if task is None or not self._interrupted:
            return False
        alone = task.uncancel() <= self._baseline
        if isinstance(error, asyncio.CancelledError):
            return alone
        # A cancellation asked for in the last step of the body is still under way to the task
        # (before Python 3.13 `uncancel` does not stop it): meet it here.
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if not alone or task.cancelling() > self._baseline:
                raise
        return False


async def give_back_at_exit(giving_back: Awaitable[object], what: str) -> LockLost | None:
    """Give back what the body held; returns the loss if the cluster has ended it before."""
    try:
        await giving_back
    except NotHolder as failure:
        return LockLost(f"the cluster ended it ({failure.detail})")
    except DistSyncError as failure:
        _log.warning("%s could not be released, its lease will end: %s", what, failure)
    return None


def tell_loss(
    loss: DistSyncError | None, error: BaseException | None, *, cancelled_by_us: bool = False
) -> None:
    """End a `with` that was left with `error`: raise the loss, unless another error wins."""
    if loss is None:
        return
    if error is None or cancelled_by_us:
        raise loss from error
    if not isinstance(error, asyncio.CancelledError):
        error.add_note(str(loss))
