"""Queues, their messages and consumers for programs without asyncio.

They do as their asynchronous models do, with one difference: nothing can cancel a handler or the
body of a `with`. It calls `check()` where it matters; leaving a `with` whose claim was lost raises
`ClaimLost`, unless the body raised an error of its own. Claims are extended in the client's own
thread meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

from distsync.backoff import AnyBackoff
from distsync.body import tell_loss
from distsync.consumers import Consumer
from distsync.durations import Duration, to_seconds
from distsync.fences import Fence
from distsync.messages import ClaimedMessage
from distsync.queue_models import (
    Message,
    MessageInfo,
    MessageOrder,
    PeekedMessage,
    QueueConfig,
    QueueStats,
    Schedule,
)
from distsync.queues import Queue
from distsync.waiting import Wait

if TYPE_CHECKING:
    from distsync.portal import Portal

__all__ = ["SyncConsumer", "SyncHandler", "SyncMessage", "SyncQueue"]

_LONGEST_WAIT_SECONDS: Final = 0.5


class SyncMessage:
    """One message that is claimed; made by `SyncQueue.pop` or a `SyncConsumer`.

    See `ClaimedMessage` for its fields and for what `with` does.
    """

    def __init__(self, portal: Portal, message: ClaimedMessage) -> None:
        """Users call `SyncQueue.pop` instead."""
        self.id = message.id
        self.body = message.body
        self.deliveries = message.deliveries
        self.priority = message.priority
        self.group = message.group
        self.receipt = message.receipt
        self.queue = message.queue
        self._portal = portal
        self._message = message

    @property
    def settled(self) -> bool:
        """Whether it was acknowledged or given back."""
        return self._message.settled

    @property
    def claimed(self) -> ClaimedMessage:
        """For the library itself."""
        return self._message

    def expires_in(self) -> float:
        """Return for how many seconds it is claimed without another extension; 0 when it is not."""
        return self._message.expires_in()

    def check(self) -> None:
        """Raise `ClaimLost` if the claim has ended; no I/O."""
        self._message.check()

    def ack(self) -> None:
        """It is done and leaves the queue. Raises as `ClaimedMessage.ack`."""
        self._portal.call(self._message.ack)

    def nack(self, delay: Duration = 0.0, *, dead: bool = False) -> bool:
        """It failed; see `ClaimedMessage.nack`."""

        async def nack() -> bool:
            return await self._message.nack(delay, dead=dead)

        return self._portal.call(nack)

    def extend(self, visibility: Duration) -> None:
        """Have the claim last `visibility` from now. Raises as `ClaimedMessage.extend`."""
        self._portal.call(self._message.extend, visibility)

    def __enter__(self) -> SyncMessage:
        async def begin() -> None:
            self._message.begin()

        self._portal.call(begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._portal.of_this_process:
            tell_loss(self._portal.call(self._message.leave, error), error)


SyncHandler: TypeAlias = Callable[[SyncMessage], object]
"""Works on one message, which is acknowledged when it returns."""


class SyncQueue:
    """One queue; made by `Client.queue`. See `Queue` for what it guarantees."""

    def __init__(self, portal: Portal, queue: Queue) -> None:
        """Users call `Client.queue` instead."""
        self.name = queue.name
        self._portal = portal
        self._queue = queue

    def push(
        self,
        body: str,
        *,
        delay: Duration = 0.0,
        priority: int = 0,
        ttl: Duration | None = None,
        dedupe_id: str | None = None,
        group: str | None = None,
        fence: Fence | None = None,
    ) -> str:
        """Put a message into the queue; returns its id. See `Queue.push`."""

        async def push() -> str:
            return await self._queue.push(
                body,
                delay=delay,
                priority=priority,
                ttl=ttl,
                dedupe_id=dedupe_id,
                group=group,
                fence=fence,
            )

        return self._portal.call(push)

    def push_many(
        self, messages: Iterable[str | Message], *, fence: Fence | None = None
    ) -> list[str]:
        """Put messages into the queue in their order; returns their ids. See `Queue.push_many`."""
        given = list(messages)  # what an iterator does belongs to this thread

        async def push_many() -> list[str]:
            return await self._queue.push_many(given, fence=fence)

        return self._portal.call(push_many)

    def pop(
        self,
        max: int = 1,
        wait: Wait = 0.0,
        visibility: Duration = 30.0,
        *,
        ack: Iterable[SyncMessage] = (),
    ) -> list[SyncMessage]:
        """Claim up to `max` messages; see `Queue.pop`."""
        done = [message.claimed for message in ack]

        async def pop() -> list[ClaimedMessage]:
            return await self._queue.pop(max, wait, visibility, ack=done)

        messages = self._portal.call(pop)
        return [SyncMessage(self._portal, message) for message in messages]

    def ack_many(self, messages: Iterable[SyncMessage]) -> None:
        """Acknowledge messages of this queue; see `Queue.ack_many`."""
        self._portal.call(self._queue.ack_many, [message.claimed for message in messages])

    def consume(
        self,
        *,
        concurrency: int = 10,
        visibility: Duration = 30.0,
        wait: Wait = 20.0,
        backoff: AnyBackoff | None = None,
        auto_ack: bool = True,
    ) -> SyncConsumer:
        """Return a consumer: `for message in consumer`, or `consumer.run(handler)`.

        See `Queue.consume` for the arguments.
        """

        async def make() -> Consumer:
            return self._queue.consume(
                concurrency=concurrency,
                visibility=visibility,
                wait=wait,
                backoff=backoff,
                auto_ack=auto_ack,
            )

        return SyncConsumer(self._portal, self._portal.call(make))

    def stats(self) -> QueueStats:
        """Return how much is in the queue and what has happened. Raises `QueueNotFound`."""
        return self._portal.call(self._queue.stats)

    def peek(self, max: int = 1) -> list[PeekedMessage]:
        """Return the messages that a pop would claim now, without claiming them."""
        return self._portal.call(self._queue.peek, max)

    def configure(
        self,
        *,
        max_length: int | None = None,
        max_deliveries: int | None = None,
        dedupe_window: Duration | None = None,
        ttl: Duration | None = None,
        rate_count: int | None = None,
        rate_per: Duration | None = None,
        create: bool = True,
    ) -> QueueConfig:
        """Change what is given and return the configuration; see `Queue.configure`."""

        async def configure() -> QueueConfig:
            return await self._queue.configure(
                max_length=max_length,
                max_deliveries=max_deliveries,
                dedupe_window=dedupe_window,
                ttl=ttl,
                rate_count=rate_count,
                rate_per=rate_per,
                create=create,
            )

        return self._portal.call(configure)

    def pause(self) -> QueueConfig:
        """Have nothing delivered until it is resumed. Raises `QueueNotFound`."""
        return self._portal.call(self._queue.pause)

    def resume(self) -> QueueConfig:
        """Have messages delivered again. Raises `QueueNotFound`."""
        return self._portal.call(self._queue.resume)

    def purge(self, *, dead: bool = False) -> int:
        """Remove all messages, claimed ones too, or all dead letters; returns how many."""

        async def purge() -> int:
            return await self._queue.purge(dead=dead)

        return self._portal.call(purge)

    def redrive(self) -> int:
        """Put all dead letters back into the queue; returns how many."""
        return self._portal.call(self._queue.redrive)

    def schedule(
        self,
        id: str,
        cron: str,
        body: str,
        *,
        timezone: str = "UTC",
        priority: int = 0,
        ttl: Duration | None = None,
        group: str | None = None,
    ) -> Schedule:
        """Have a message pushed again and again; see `Queue.schedule`."""

        async def schedule() -> Schedule:
            return await self._queue.schedule(
                id, cron, body, timezone=timezone, priority=priority, ttl=ttl, group=group
            )

        return self._portal.call(schedule)

    def unschedule(self, id: str) -> bool:
        """Push it no more; returns whether there was such a schedule. See `Queue.unschedule`."""
        return self._portal.call(self._queue.unschedule, id)

    def schedules(self) -> list[Schedule]:
        """Return the schedules of this queue, by id."""
        return self._portal.call(self._queue.schedules)

    def get(self, message_id: str) -> MessageInfo:
        """Return one message, wherever it is. Raises as `Queue.get`."""
        return self._portal.call(self._queue.get, message_id)

    def cancel(self, message_id: str) -> None:
        """Take a message out that is not claimed. Raises as `Queue.cancel`."""
        self._portal.call(self._queue.cancel, message_id)

    def list(self, order: MessageOrder = "ready") -> Iterator[MessageInfo]:
        """Yield messages wherever they are, without claiming them; see `Queue.list`."""
        return self._portal.iterate(self._queue.list(order))


def _await_interruptibly(running: Future[None]) -> None:
    """Wait for the end. A signal that comes just before a wait begins does not end it (Python sees
    it when the wait is over), so each wait is short: no Ctrl-C goes unnoticed."""
    while not running.done():
        wait((running,), timeout=_LONGEST_WAIT_SECONDS)
    running.result()


class SyncConsumer:
    """Consumes one queue, once; made by `SyncQueue.consume`. See `distsync.consumers`.

    A `for` works on one message at a time: asking for the next acknowledges the one before, unless
    that was held by `with`. Leaving it by an exception or a `break` does not.
    """

    def __init__(self, portal: Portal, consumer: Consumer) -> None:
        """Users call `SyncQueue.consume` instead."""
        self.queue = consumer.queue
        self._portal = portal
        self._consumer = consumer

    def stop(self) -> None:
        """Claim nothing more and end; from any thread, also from a signal handler."""

        async def stop() -> None:
            self._consumer.stop()

        self._portal.send(stop)

    def run(self, handler: SyncHandler, *, grace: Duration = 10.0) -> None:
        """Call `handler` for messages, up to `concurrency` at once, until stopped or interrupted.

        Each call has a thread of its own. As `Consumer.run`, except that a handler is not
        cancelled: `check()` of its message raises `ClaimLost` when the claim is lost. One that
        still runs after the `grace` is left behind in a daemon thread, and its claim ends by
        itself. Ctrl-C stops it in the same way and goes on afterwards; a second one ends the grace.
        """
        grace_seconds = to_seconds(grace, "grace")

        async def run() -> None:
            await self._consumer.run(
                lambda message: self._in_thread(handler, message), grace=grace_seconds
            )

        running = self._portal.submit(run)
        try:
            _await_interruptibly(running)
        except KeyboardInterrupt:
            self.stop()
            try:
                _await_interruptibly(running)
            except BaseException:
                running.cancel()
                raise
            raise
        except BaseException:
            running.cancel()
            raise

    def __iter__(self) -> Iterator[SyncMessage]:
        return self._portal.iterate(self._messages())

    async def _messages(self) -> AsyncIterator[SyncMessage]:
        async with aclosing(aiter(self._consumer)) as messages:
            async for message in messages:
                yield SyncMessage(self._portal, message)

    def __enter__(self) -> SyncConsumer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async def leave() -> None:
            async with self._consumer:
                pass

        if self._portal.of_this_process:
            self._portal.call(leave)

    async def _in_thread(self, handler: SyncHandler, message: ClaimedMessage) -> None:
        """Run the handler in a thread; its slot is taken for as long as that runs."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not ended.done():
                ended.set_result(error)

        def work() -> None:
            error: Exception | None = None
            try:
                handler(SyncMessage(self._portal, message))
            except Exception as raised:
                error = raised
            except BaseException as raised:  # as SystemExit: it must not end the client's thread
                error = RuntimeError(f"the handler raised {raised!r}")
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(tell, error)

        threading.Thread(target=work, name=f"distsync-handler {self.queue}", daemon=True).start()
        while not ended.done():
            try:
                await asyncio.shield(ended)
            except asyncio.CancelledError:
                if self._consumer.is_grace_over:
                    message.leave_behind()
                    raise
                # Its claim is lost, and `check()` says so; nothing else can end a thread.
        if (error := ended.result()) is not None:
            raise error
