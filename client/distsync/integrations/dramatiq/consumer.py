"""The consumer behind dramatiq's workers.

It claims up to `prefetch` messages ahead, those at work included, and extends their claims until
they are settled, wherever they are: here, in the worker's own queue, or in an actor. That outlives
the consumer, for a worker that is paused or takes up a queue again goes on with what it has.

Two threads call: dramatiq's consumer thread takes messages out, its workers settle them.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Coroutine, Iterable
from contextlib import aclosing
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final

from dramatiq import Message
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.errors import BrokerError, DecodeError

from distsync import consumers
from distsync.backoff import Backoff
from distsync.batches import chunks
from distsync.errors import ClaimLost, ClientClosed, DistSyncError, StaleReceipt
from distsync.integrations.dramatiq.bodies import to_bytes
from distsync.integrations.dramatiq.failures import may_succeed_later, translated
from distsync.messages import ClaimedMessage
from distsync.portal import Portal
from distsync.queue_calls import MAX_BATCH, QueueCalls

__all__ = ["ClaimedProxy", "DistSyncConsumer"]

_log = logging.getLogger(__name__)

_LONGEST_END_SECONDS: Final = 10.0


class ClaimedProxy(MessageProxy):
    """A message that is claimed, as the worker has it."""

    def __init__(self, message: Message[Any], claimed: ClaimedMessage, portal: Portal) -> None:
        super().__init__(message)
        self.claimed = claimed
        self.portal = portal
        self.is_unfinished = False

    def follow_up_failed(self, error: Exception) -> None:
        """What this message leads to (a retry, the next of a pipeline) could not be enqueued.

        dramatiq only logs that and acknowledges the message. So an acknowledgement gives it back
        instead, to be run again, or makes it a dead letter if that could not help.
        """
        if isinstance(error, DistSyncError) and not may_succeed_later(error):
            self.fail()
        elif isinstance(error, (BrokerError, DistSyncError)):
            self.is_unfinished = True


class DistSyncConsumer(Consumer):
    """Consumes one queue; made by `DistSyncBroker.consume`."""

    def __init__(
        self,
        portal: Portal,
        calls: QueueCalls,
        make: Callable[[], consumers.Consumer],
        *,
        queue_name: str,
        timeout_ms: int,
    ) -> None:
        self._portal = portal
        self._calls = calls
        self._queue_name = queue_name
        self._timeout_seconds = timeout_ms / 1000
        self._arrived: SimpleQueue[ClaimedMessage | None] = SimpleQueue()
        with translated():
            self._consumer = portal.call(_called, make)
            self._pumping = portal.submit(self._pump)
        self._pumping.add_done_callback(lambda _: self._arrived.put(None))

    # --- Messages out -----------------------------------------------------------------------

    def __next__(self) -> MessageProxy | None:
        """Return the next message; None if there was none for the timeout.

        Raises:
            ConnectionClosed, ConnectionFailed: the client was closed. Outages are ridden out.
            DistSyncError: the cluster refused.
        """
        try:
            claimed = self._arrived.get(timeout=self._timeout_seconds)
        except Empty:
            claimed = None
        if claimed is None:
            self._raise_failure()
            return None
        if claimed.claim.loss() is not None:  # it waited here for too long
            return None
        try:
            message = Message.decode(to_bytes(claimed.body))
        except (DecodeError, ValueError):
            _log.exception(
                "Message %s of queue %r cannot be decoded and is a dead letter now.",
                claimed.id,
                self._queue_name,
            )
            self._settle(self._portal, partial(claimed.nack, dead=True), claimed.id)
            return None
        if message.queue_name != self._queue_name:  # the worker finds its consumer by that
            message = message.copy(queue_name=self._queue_name)
        return ClaimedProxy(message, claimed, self._portal)

    def _raise_failure(self) -> None:
        if self._pumping.done():
            with translated():
                self._pumping.result()

    async def _pump(self) -> None:
        async with self._consumer as consumer, aclosing(aiter(consumer)) as messages:
            async for claimed in messages:
                try:
                    claimed.begin()  # extended from now on, whatever becomes of this consumer
                except ClaimLost:
                    continue
                self._arrived.put(claimed)

    # --- Settling ---------------------------------------------------------------------------

    def ack(self, message: MessageProxy) -> None:
        """It is done.

        Raises:
            ConnectionClosed, ConnectionFailed: no answer in time; ask again.
        """
        if not isinstance(message, ClaimedProxy):
            return
        claimed = message.claimed
        work: Callable[[], Coroutine[Any, Any, object]] = claimed.ack
        if message.is_unfinished:
            delay = Backoff()(claimed.deliveries)
            _log.warning(
                "What follows message %s could not be enqueued. It runs again in %.1f s.",
                message.message_id,
                delay,
            )
            work = partial(claimed.nack, delay)
        self._settle(message.portal, work, message.message_id)

    def nack(self, message: MessageProxy) -> None:
        """It failed for good and becomes a dead letter. Raises as `ack`."""
        if isinstance(message, ClaimedProxy):
            work = partial(message.claimed.nack, dead=True)
            self._settle(message.portal, work, message.message_id)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        """Give back messages that were not begun; that spends no delivery. Raises as `ack`."""
        mine = [
            message.claimed
            for message in messages
            if isinstance(message, ClaimedProxy) and message.portal is self._portal
        ]
        if mine:
            with translated():
                self._portal.call(self._give_back, mine)

    def _settle(
        self, portal: Portal, work: Callable[[], Coroutine[Any, Any, object]], message_id: str
    ) -> None:
        with translated():
            try:
                portal.call(work)
            except (StaleReceipt, ClientClosed, concurrent.futures.CancelledError) as error:
                _log.warning("Message %s may run again: %s", message_id, error)

    async def _give_back(self, claimed: list[ClaimedMessage]) -> None:
        for message in claimed:
            message.let_go()
        for batch in chunks(claimed, MAX_BATCH):
            stale: set[str] = set()
            try:
                await self._calls.nack([message.receipt for message in batch], spend=False)
            except StaleReceipt as error:
                stale = set(error.stale)
            for message in batch:
                message.settled_elsewhere(stale=message.receipt in stale)

    # --- The end ----------------------------------------------------------------------------

    def stop_claiming(self) -> None:
        """Claim nothing more; what is claimed stays so. From any thread, does not wait."""
        self._portal.send(self._stop)

    def close(self) -> None:
        """Give back what no worker was given. Twice is harmless."""
        self.stop_claiming()
        concurrent.futures.wait([self._pumping], timeout=_LONGEST_END_SECONDS)
        left = []
        while not self._arrived.empty():
            if (claimed := self._arrived.get()) is not None and not claimed.settled:
                left.append(claimed)
        if left:
            with translated():
                self._portal.call(self._give_back, left)

    async def _stop(self) -> None:
        self._consumer.stop()


async def _called(make: Callable[[], consumers.Consumer]) -> consumers.Consumer:
    return make()
