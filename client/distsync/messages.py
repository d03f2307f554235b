"""A claimed message: to be done with, given back or kept for longer.

    for message in await queue.pop(10, wait=20):
        async with message:
            await work(message.body)

What the holder of a claim may rely on:

- Inside `async with` the claim is extended as long as the body runs; those of other messages of the
  same pop are not, so they should not wait long for their turn (a `Consumer` keeps them). If it is
  lost all the same, the body is cancelled and the `async with` raises `ClaimLost`; the message is
  delivered again, or was already.
- Leaving acknowledges the message. After an exception it is given back with a delay that grows with
  its deliveries, and the exception goes on; after a cancellation it is given back at once. Whatever
  the body settled itself stays as it is.
- An acknowledgement that finds no answer is logged: the message may come again. That can happen at
  any time, so what is done with a message must bear being done twice.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Final

from distsync.backoff import AnyBackoff
from distsync.body import BodyGuard, tell_loss
from distsync.claims import Claim, Keeper
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import ClaimLost, DistSyncError, StaleReceipt
from distsync.identity import new_request_id
from distsync.lease import Span
from distsync.queue_calls import QueueCalls
from distsync.queue_models import Popped

__all__ = ["ClaimedMessage"]

_log = logging.getLogger("distsync")

_LONGEST_DELAY_SECONDS: Final = 30 * 86_400.0
_ENDED: Final = "the cluster ended it"


class ClaimedMessage:
    """One message that is claimed; made by `Queue.pop` or a `Consumer`.

    Attributes:
        id: its id, as the push returned it.
        body: what was pushed.
        deliveries: how often it was delivered, this time included.
        priority: 0 to 9, the most urgent.
        group: the group within which order is kept; empty without one.
        receipt: what the cluster knows the claim by.
        queue: the name of its queue.
    """

    def __init__(
        self,
        calls: QueueCalls,
        keeper: Keeper,
        popped: Popped,
        *,
        span: Span,
        visibility_ms: int,
        backoff: AnyBackoff,
    ) -> None:
        """Users call `Queue.pop` instead."""
        self.id = popped.id
        self.body = popped.body
        self.deliveries = popped.deliveries
        self.priority = popped.priority
        self.group = popped.group
        self.receipt = popped.receipt
        self.queue = calls.name
        self._calls = calls
        self._keeper = keeper
        self._backoff = backoff
        self._claim = Claim(calls.core.clock, popped.receipt, span, visibility_ms)
        self._ack_id: str | None = None
        self._guard = BodyGuard()
        self._settled = False
        self._left_behind = False
        self._entered = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r} of {self.queue!r}: {self._state()}>"

    @property
    def settled(self) -> bool:
        """Whether it was acknowledged or given back."""
        return self._settled

    @property
    def entered(self) -> bool:
        """Whether it is or was held by a `with`."""
        return self._entered

    @property
    def claim(self) -> Claim:
        """For the library itself."""
        return self._claim

    def expires_in(self) -> float:
        """Return for how many seconds it is claimed without another extension; 0 when it is not.

        By this client's clock, from before the request that claimed or extended it was sent.
        """
        return self._claim.remaining()

    def check(self) -> None:
        """Raise if the claim is not held any more; cheap, without I/O, from any thread.

        Raises:
            ClaimLost: it has ended.
        """
        if (error := self._claim.loss()) is not None:
            raise self._lost(error)

    async def ack(self) -> None:
        """It is done and leaves the queue.

        Raises:
            StaleReceipt: the claim had ended; the message is delivered again, or was settled.
            Unavailable, OutcomeUnknown: no answer within the client's timeout; ask again.
        """
        self._ack_id = self._ack_id or new_request_id()
        try:
            await self._calls.ack([self.receipt], self._ack_id)
        except StaleReceipt:
            self._end(lost=True)
            raise
        self._end()

    async def nack(self, delay: Duration = 0.0, *, dead: bool = False) -> bool:
        """It failed: it is delivered again after `delay`, or becomes a dead letter if `dead`.

        Returns whether it is a dead letter now, as one that was delivered too often is.

        Raises: as `ack`.
        """
        delay_ms = to_milliseconds(to_seconds(delay, "delay"))
        try:
            died = await self._calls.nack([self.receipt], delay_ms=delay_ms, dead=dead)
        except StaleReceipt:
            self._end(lost=True)
            raise
        self._end()
        return bool(died)

    async def extend(self, visibility: Duration) -> None:
        """Have the claim last `visibility` from now.

        Raises:
            StaleReceipt: it has ended.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        visibility_ms = to_milliseconds(to_seconds(visibility, "visibility"))
        await self._keeper.extend(self._claim, visibility_ms)

    async def __aenter__(self) -> ClaimedMessage:
        self.begin()
        self._guard.enter()
        self._claim.listener = self._on_loss
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._claim.listener = None
        cancelled_by_us = await self._guard.leave(error)
        tell_loss(await self.leave(error), error, cancelled_by_us=cancelled_by_us)

    # --- For the library itself -------------------------------------------------------------

    def begin(self) -> None:
        """The body of a `with` begins."""
        if self._settled:
            raise RuntimeError(f"message {self.id!r} was settled already")
        self.check()
        self._entered = True
        self._keeper.keep(self._claim)

    async def leave(self, error: BaseException | None) -> ClaimLost | None:
        """Settle it after a body that ended with `error`; returns the loss of its claim."""
        if not self._settled and not self._left_behind and self._claim.loss() is None:
            work = self._settle(error)
            settling = self._calls.core.ghosts.run(work, name="distsync-settle")
            await asyncio.wait([settling])  # if this is cancelled, that goes on
        if (loss := self._claim.loss()) is not None:
            return self._lost(loss)
        return None

    def settled_elsewhere(self, *, stale: bool) -> None:
        """A call for several messages settled it, or found its claim ended."""
        self._end(lost=stale)

    def let_go(self) -> None:
        """Do not extend it any more: its claim ends by itself."""
        self._keeper.drop(self._claim)

    def leave_behind(self) -> None:
        """Somebody goes on working on it whom nobody waits for: leave it unsettled, too."""
        self._left_behind = True
        self.let_go()

    def _end(self, *, lost: bool = False) -> None:
        self._claim.listener = None  # who asked is told already
        if lost:
            self._claim.lose(_ENDED)
        else:
            self._settled = self._claim.is_over = True
        self._keeper.drop(self._claim)

    async def _settle(self, error: BaseException | None) -> None:
        try:
            if error is None:
                await self.ack()
            elif isinstance(error, Exception):
                delay = to_seconds(self._backoff(self.deliveries), "backoff")
                await self.nack(min(delay, _LONGEST_DELAY_SECONDS))
            else:
                await self.nack()
        except StaleReceipt:
            pass  # the loss is known now
        except DistSyncError as failure:
            _log.warning("%r could not be settled, its claim will end: %s", self, failure)
            self.let_go()

    def _on_loss(self, error: ClaimLost) -> None:
        self._guard.interrupt(str(self._lost(error)))

    def _lost(self, error: ClaimLost) -> ClaimLost:
        return ClaimLost(f"{self.queue}, message {self.id}: {error.detail}", **error.fields)

    def _state(self) -> str:
        if self._settled:
            return "settled"
        return "claimed" if self.expires_in() else "no longer claimed"
