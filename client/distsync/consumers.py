"""A consumer: messages of one queue for as long as a program runs.

    consumer = queue.consume(concurrency=10)
    loop.add_signal_handler(signal.SIGTERM, consumer.stop)
    await consumer.run(handle)                 # up to ten at a time

    async with queue.consume() as consumer:    # or one at a time
        async for message in consumer:
            await work(message.body)           # acknowledged when the next one is asked for

What holds for both:

- Claims are extended while they are not settled. One that is lost cancels its handler, or the body
  of its `async with`.
- `run` claims only as many messages as it has handlers free, so none waits for one. When it stops,
  the pop that is under way is ended by closing its connection: the cluster takes back what it
  claimed for it, and no delivery is spent. A node needs a moment before it notices that, so a pop
  that has just begun is given that moment first; if it is answered, its messages are given back.
  So are those of an answer that met the closing connection (`QueueCalls.pop`).
- `async for` claims up to `concurrency` messages ahead. Those not begun when it is left are given
  back. The one at hand is not acknowledged when the loop is left by an exception or a `break`: its
  claim ends by itself, unless it was held by `async with`, which settles it.
- A cluster that cannot be reached is asked again until it can, and does not end the consumer.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Final, TypeAlias

from distsync.backoff import AnyBackoff
from distsync.claims import Keeper
from distsync.clock import sleep_until
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import (
    ClaimLost,
    ClientClosed,
    DistSyncError,
    LimitReached,
    OutcomeUnknown,
    ServerError,
    Unavailable,
)
from distsync.messages import ClaimedMessage
from distsync.popping import Popper
from distsync.queue_calls import MAX_BATCH, QueueCalls
from distsync.waiting import Wait, until_of, wait_seconds

__all__ = ["Consumer", "Handler"]

_log = logging.getLogger("distsync")

Handler: TypeAlias = Callable[[ClaimedMessage], Awaitable[object]]
"""Works on one message, which is acknowledged when it returns."""

_SHORTEST_WAIT_SECONDS: Final = 0.1
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_YOUNGEST_TO_CUT_SECONDS: Final = 0.1  # from then on a node watches the connection of a pop
_TAKING_BACK_SECONDS: Final = 1.0  # afterwards it goes on in the background


class Consumer:
    """Consumes one queue, once; made by `Queue.consume`. See `distsync.consumers`."""

    def __init__(
        self,
        calls: QueueCalls,
        *,
        concurrency: int,
        visibility: Duration,
        wait: Wait,
        backoff: AnyBackoff,
        auto_ack: bool,
    ) -> None:
        """Users call `Queue.consume` instead."""
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        self.queue = calls.name
        self.concurrency = concurrency
        self.is_grace_over = False
        self._calls = calls
        self._core = calls.core
        self._changed = asyncio.Event()
        self._keeper = Keeper(calls, self._changed.set)
        self._popper = Popper(
            calls=calls,
            keeper=self._keeper,
            visibility_ms=to_milliseconds(to_seconds(visibility, "visibility")),
            backoff=backoff,
        )
        seconds = wait_seconds(wait)
        self._wait = None if seconds is None else max(seconds, _SHORTEST_WAIT_SECONDS)
        self._auto_ack = auto_ack
        self._begun = False
        self._stopped = asyncio.Event()  # asked to stop, or pulling has ended
        self._puller: asyncio.Task[None] | None = None
        self._returning = False
        self._popping_since: float | None = None
        self._failure: DistSyncError | None = None
        self._ahead: deque[ClaimedMessage] = deque()
        self._at_hand: ClaimedMessage | None = None
        self._finishing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.queue!r}: {len(self._keeper)} claimed>"

    def stop(self) -> None:
        """Claim nothing more and end: `run` when its handlers have, `async for` at its next step.

        To be called from the event loop, also from a signal handler of it. Twice is harmless.
        """
        self._stopped.set()
        self._changed.set()

    async def run(self, handler: Handler, *, grace: Duration = 10.0) -> None:
        """Call `handler` for messages, up to `concurrency` at once, until stopped or cancelled.

        A message is acknowledged when its handler returns. When that raises, this is logged and the
        message is given back with the back-off. A handler may settle its message itself.

        Then nothing more is claimed, and handlers have `grace` to end; those that have not are
        cancelled, and their messages given back at once. A second cancellation ends the grace.

        Raises:
            ClientClosed: the client was closed.
            DistSyncError: the cluster refused to give messages, for another reason than an outage.
        """
        grace_seconds = to_seconds(grace, "grace")
        handlers: set[asyncio.Task[None]] = set()

        def start(message: ClaimedMessage) -> None:
            task = asyncio.get_running_loop().create_task(
                self._handle(handler, message), name=f"distsync-handler {self.queue}"
            )
            handlers.add(task)
            task.add_done_callback(lambda task: self._handled(handlers, task, message))

        self._begin(lambda: self.concurrency - len(handlers), start)
        try:
            await self._stopped.wait()
        finally:
            await self._end_run(handlers, grace_seconds)
        self._raise_failure()

    def __aiter__(self) -> AsyncGenerator[ClaimedMessage, None]:
        return self._iterate()

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        await self._finish()

    # --- Claiming ---------------------------------------------------------------------------

    def _begin(self, free: Callable[[], int], take: Callable[[ClaimedMessage], object]) -> None:
        if self._begun:
            raise RuntimeError("a consumer is used once; make another")
        self._begun = True
        self._puller = self._core.background.spawn(
            self._pull(free, take), name=f"distsync-pull {self.queue}"
        )
        self._puller.add_done_callback(lambda _: self._puller_ended())

    def _puller_ended(self) -> None:
        if not self._stopped.is_set() and self._failure is None:
            self._failure = ClientClosed("this client has been closed")
        self.stop()

    async def _pull(
        self, free: Callable[[], int], take: Callable[[ClaimedMessage], object]
    ) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stopped.is_set():
            self._changed.clear()
            room = min(free(), MAX_BATCH)
            if room <= 0:
                await self._changed.wait()
                continue
            self._popping_since = self._core.clock.now()
            try:
                messages = await self._popper.pop(room, until_of(self._core, self._wait))
            except DistSyncError as error:
                self._popping_since = None
                if not _is_outage(error):
                    self._failure = error
                    return
                _log.warning("%s cannot be consumed now: %s", self.queue, error)
                again = self._core.clock.now() + pause * (0.5 + random.random() / 2)
                await sleep_until(self._core.clock, again)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            self._popping_since = None
            pause = _FIRST_PAUSE_SECONDS
            if self._stopped.is_set():
                self._returning = True
                await self._give_back(messages)
                return
            for message in messages:
                self._keeper.keep(message.claim)
                take(message)

    async def _end_pulling(self) -> None:
        """End the pop under way by closing its connection, unless it is answered at this moment."""
        self.stop()
        puller = self._puller
        if puller is None:
            return
        try:
            if self._popping_since is not None:
                age = self._core.clock.now() - self._popping_since
                patience = max(0.0, _YOUNGEST_TO_CUT_SECONDS - age)
                await asyncio.wait([puller], timeout=patience)
        finally:
            if not self._returning:
                puller.cancel()
        await asyncio.wait([puller])
        await self._calls.taken_back(_TAKING_BACK_SECONDS)

    async def _give_back(self, messages: list[ClaimedMessage]) -> None:
        for message in messages:
            message.let_go()
        if messages:
            await asyncio.wait([self._calls.give_back([message.receipt for message in messages])])

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # --- Running ----------------------------------------------------------------------------

    async def _handle(self, handler: Handler, message: ClaimedMessage) -> None:
        try:
            async with message:
                await handler(message)
        except ClaimLost as error:
            _log.warning("a handler was cancelled: %s", error)
        except Exception:
            _log.exception("the handler of %r failed", message)

    def _handled(
        self, handlers: set[asyncio.Task[None]], task: asyncio.Task[None], message: ClaimedMessage
    ) -> None:
        handlers.discard(task)
        if not message.entered and not message.claim.is_over:  # cancelled before its first step
            message.let_go()
            self._calls.give_back([message.receipt])
        self._changed.set()

    async def _end_run(self, handlers: set[asyncio.Task[None]], grace_seconds: float) -> None:
        try:
            await self._end_pulling()
            if handlers:
                await asyncio.wait(list(handlers), timeout=grace_seconds)
        finally:
            self.is_grace_over = True
            left = list(handlers)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    # --- Iterating --------------------------------------------------------------------------

    async def _iterate(self) -> AsyncGenerator[ClaimedMessage, None]:
        self._begin(lambda: self.concurrency - len(self._keeper), self._take_ahead)
        try:
            while (message := await self._next()) is not None:
                self._at_hand = message
                yield message
                self._at_hand = None
                if self._auto_ack and not message.entered:
                    await self._ack(message)
        finally:
            await self._finish()
        self._raise_failure()

    def _take_ahead(self, message: ClaimedMessage) -> None:
        self._ahead.append(message)
        self._changed.set()

    async def _next(self) -> ClaimedMessage | None:
        while not self._stopped.is_set():
            self._changed.clear()
            while self._ahead:
                message = self._ahead.popleft()
                if message.expires_in():  # else it is somebody else's by now
                    return message
            await self._changed.wait()
        return None

    async def _ack(self, message: ClaimedMessage) -> None:
        if message.settled:
            return
        if (loss := await message.leave(None)) is not None:
            _log.warning("a message may come again: %s", loss)

    async def _finish(self) -> None:
        if self._finishing is None:
            self._finishing = self._core.ghosts.run(
                self._finish_iterating(), name=f"distsync-finish {self.queue}"
            )
        await asyncio.wait([self._finishing])

    async def _finish_iterating(self) -> None:
        if self._at_hand is not None and not self._at_hand.entered:
            self._at_hand.let_go()
        await self._end_pulling()
        ahead = [message for message in self._ahead if message.expires_in()]
        self._ahead.clear()
        await self._give_back(ahead)


def _is_outage(error: DistSyncError) -> bool:
    if isinstance(error, ClientClosed):
        return False
    return isinstance(error, (Unavailable, OutcomeUnknown, LimitReached, ServerError))
