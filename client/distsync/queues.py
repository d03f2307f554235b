"""A message queue: at-least-once delivery, in the order of priority and then of the pushes.

    emails = client.queue("emails")
    await emails.push("hello")
    for message in await emails.pop(10, wait=20):
        async with message:
            await send(message.body)

`Queue.consume` does the second half for as long as a program runs; see `Consumer`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from typing import Final

import msgspec

from distsync.backoff import AnyBackoff, Backoff
from distsync.batches import MAX_JSON_BYTES, batches, chunks
from distsync.claims import Keeper
from distsync.consumers import Consumer
from distsync.core import Core
from distsync.durations import Duration, milliseconds_or_none, to_milliseconds, to_seconds
from distsync.errors import BadRequest, DistSyncError, StaleReceipt
from distsync.fences import Fence, fence_body
from distsync.messages import ClaimedMessage
from distsync.models import RefusedItem
from distsync.popping import Popper
from distsync.queue_calls import MAX_BATCH, QueueCalls
from distsync.queue_models import (
    ConfigBody,
    Message,
    MessageInfo,
    MessageOrder,
    PeekedMessage,
    PushedMessage,
    QueueConfig,
    QueueStats,
    Schedule,
    ScheduleBody,
)
from distsync.waiting import Wait, until_of, wait_seconds

__all__ = ["Queue"]

_PLACE: Final = re.compile(r"^messages\[(\d+)\]")
_BATCH_LIMITS: Final = (MAX_BATCH, 4 * 1024 * 1024, MAX_JSON_BYTES)  # messages, bodies, JSON


class Queue:
    """One queue; made by `AsyncClient.queue`. A name that is new makes a queue with its first push.

    Everything that changes something is repeated through failures of nodes and connections for the
    client's timeout, and done once. Without an answer by then it ends with `Unavailable` (nothing
    was done) or `OutcomeUnknown` (it may have been done).
    """

    def __init__(self, core: Core, name: str) -> None:
        """Users call `AsyncClient.queue` instead."""
        self.name = name
        self._calls = QueueCalls(core, name)
        self._keeper: Keeper | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    # --- Messages in ------------------------------------------------------------------------

    async def push(
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
        """Put a message into the queue; returns its id.

        Args:
            body: up to 256 KiB of UTF-8.
            delay: it can be claimed after this, up to 30 days.
            priority: 0 to 9; of those that can be claimed, a higher one goes first.
            ttl: it expires unless it is claimed within this; by default the queue's own.
            dedupe_id: within the queue's window, another push with the same one is not done and
                returns the first one's id.
            group: messages of a group are delivered one at a time and in order.
            fence: a lock that is held exclusively, or (name, token). The push is refused once the
                lock has a newer holder.

        Raises:
            Fenced: the lock has, or had, a newer holder.
            QueueFull: the queue holds its max_length.
            RedisFull: Redis has no memory left.
            BadRequest: a field is out of range.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        message = Message(body, delay, priority, ttl, dedupe_id, group)
        (one,) = await self._calls.push([_encoded(message)], fence_body(fence))
        return one

    async def push_many(
        self, messages: Iterable[str | Message], *, fence: Fence | None = None
    ) -> list[str]:
        """Put messages into the queue in their order; returns their ids.

        They are sent in batches of up to 100 messages and 4 MiB. Each batch is pushed as a whole or
        not at all; after a failure the ids of the batches before are in `error.fields["pushed"]`.

        Raises: as `push`. `errors` of a BadRequest tells of each message of a batch that cannot be;
            they are counted from the first of `messages`.
        """
        body = fence_body(fence)
        ids: list[str] = []
        for batch in batches(_measured(messages), _BATCH_LIMITS):
            try:
                ids += await self._calls.push(batch, body)
            except DistSyncError as error:
                error.fields["pushed"] = ids
                if isinstance(error, BadRequest):
                    _count_from(len(ids), error)
                raise
        return ids

    # --- Messages out -----------------------------------------------------------------------

    async def pop(
        self,
        max: int = 1,
        wait: Wait = 0.0,
        visibility: Duration = 30.0,
        *,
        ack: Iterable[ClaimedMessage] = (),
    ) -> list[ClaimedMessage]:
        """Claim up to `max` messages (100); returns an empty list if there was none in time.

        Args:
            max: how many at most; together up to 1 MiB.
            wait: how long to wait until there is one; None for ever. A longer wait than ten minutes
                is asked for in pieces.
            visibility: how long each is claimed, up to 12 hours; then it is delivered again. Inside
                `async with message` the claim is extended.
            ack: messages of this queue (100) that are done: they are acknowledged first, which
                saves a request. Afterwards those whose claim had ended are not `settled`.

        If this is cancelled while it waits, no delivery is spent.

        Raises:
            BadRequest: an argument is out of range, or one of `ack` is of another queue; nothing
                was done.
            Unavailable, OutcomeUnknown: no answer within the client's timeout; after the latter
                messages may be claimed until their visibility ends. After either, and after a
                cancellation, those of `ack` are not `settled` but may be acknowledged; then `ack`
                of such a message ends with `StaleReceipt`.
        """
        if self._keeper is None:
            self._keeper = Keeper(self._calls)
        popper = Popper(
            calls=self._calls,
            keeper=self._keeper,
            visibility_ms=to_milliseconds(to_seconds(visibility, "visibility")),
            backoff=Backoff(),
        )
        return await popper.pop(max, until_of(self._calls.core, wait_seconds(wait)), list(ack))

    async def ack_many(self, messages: Iterable[ClaimedMessage]) -> None:
        """Acknowledge messages of this queue, in batches of 100.

        Raises:
            StaleReceipt: some claims had ended, `stale` lists their receipts; the other messages
                are acknowledged.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        given = list(messages)
        stale: set[str] = set()
        for batch in chunks(given, MAX_BATCH):
            receipts = [message.receipt for message in batch]
            try:
                await self._calls.ack(receipts)
            except StaleReceipt as error:
                stale |= set(error.stale) or set(receipts)
            for message in batch:
                message.settled_elsewhere(stale=message.receipt in stale)
        if stale:
            raise StaleReceipt(
                f"{self.name}: the claims of {len(stale)} messages had ended",
                stale=[message.receipt for message in given if message.receipt in stale],
            )

    def consume(
        self,
        *,
        concurrency: int = 10,
        visibility: Duration = 30.0,
        wait: Wait = 20.0,
        backoff: AnyBackoff | None = None,
        auto_ack: bool = True,
    ) -> Consumer:
        """Return a consumer: `async for message in consumer`, or `await consumer.run(handler)`.

        Args:
            concurrency: how many messages are claimed, or handled, at a time.
            visibility: how long a claim lasts; it is extended at a third of it. When the consumer
                dies, its messages are delivered again after at most this.
            wait: how long one request waits for messages.
            backoff: the delay before a message that failed is delivered again, as a function of its
                deliveries; by default `Backoff()`: from 1 s, doubled each time, up to 5 minutes.
            auto_ack: in an `async for`, asking for the next message acknowledges the one before,
                unless that was held by `async with`. Without it, every message is to be settled,
                perhaps by another task.
        """
        return Consumer(
            self._calls,
            concurrency=concurrency,
            visibility=visibility,
            wait=wait,
            backoff=backoff or Backoff(),
            auto_ack=auto_ack,
        )

    # --- The queue as a whole ---------------------------------------------------------------

    async def stats(self) -> QueueStats:
        """Return how much is in the queue and what has happened. Raises `QueueNotFound`."""
        return await self._calls.stats()

    async def peek(self, max: int = 1) -> list[PeekedMessage]:
        """Return the messages that a pop would claim now, up to `max` (100), without claiming."""
        return await self._calls.peek(max)

    async def configure(
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
        """Change what is given and return the configuration; 0 is no limit.

        Args:
            max_length: a push beyond is refused with `QueueFull`.
            max_deliveries: a message that fails once it was delivered so often is a dead letter.
            dedupe_window: how long a dedupe id is remembered, up to 7 days.
            ttl: messages that say nothing else expire after this.
            rate_count: so many messages are delivered, on average, ...
            rate_per: ... in each time of this length; in any one at most twice as many, as what was
                not used is saved up.
            create: make the queue if it is not there; without it, `QueueNotFound` is raised.
        """
        body = ConfigBody(
            max_length=max_length,
            max_deliveries=max_deliveries,
            dedupe_window_ms=milliseconds_or_none(dedupe_window, "dedupe_window"),
            ttl_ms=milliseconds_or_none(ttl, "ttl"),
            rate_count=rate_count,
            rate_per_ms=milliseconds_or_none(rate_per, "rate_per"),
            create=create,
        )
        return await self._calls.configure(body)

    async def pause(self) -> QueueConfig:
        """Have nothing delivered until it is resumed. Raises `QueueNotFound`."""
        return await self._calls.switch("pause")

    async def resume(self) -> QueueConfig:
        """Have messages delivered again. Raises `QueueNotFound`."""
        return await self._calls.switch("resume")

    async def purge(self, *, dead: bool = False) -> int:
        """Remove all messages, claimed ones too, or all dead letters; returns how many."""
        return await self._calls.purge(dead=dead)

    async def redrive(self) -> int:
        """Put all dead letters back into the queue; returns how many."""
        return await self._calls.redrive()

    # --- Schedules --------------------------------------------------------------------------

    async def schedule(
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
        """Have a message pushed again and again; replaces what has the same id in this queue.

        Each time is served once, within about a second. Times that pass while no node is there are
        served as one, late. The queue need not exist.

        Args:
            id: up to 128 bytes of UTF-8; a queue has up to 100 schedules.
            cron: minute, hour, day, month and weekday, as in "30 2 * * *"; or six fields with
                seconds in front.
            body: up to 16 KiB of UTF-8.
            timezone: an IANA name, such as "Europe/Berlin", by whose clock `cron` is read.
            priority, ttl, group: of each message, as for `push`.

        Raises:
            BadRequest: `cron` or `timezone` is none (`field` says which), or another is out of
                range.
            LimitReached: the queue has 100 schedules.
            RedisFull: Redis has no memory left.
            Unavailable, OutcomeUnknown: no answer within the client's timeout. The same call again
                changes nothing more.
        """
        wanted = ScheduleBody(
            cron=cron,
            body=body,
            timezone=timezone,
            priority=priority,
            ttl_ms=milliseconds_or_none(ttl, "ttl") or 0,
            group=group or "",
        )
        return await self._calls.schedule(id, wanted)

    async def unschedule(self, id: str) -> bool:
        """Push it no more; returns whether there was such a schedule.

        After a failure that was ridden out, also True if it may have been removed by this call.

        Raises:
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        return await self._calls.unschedule(id)

    async def schedules(self) -> list[Schedule]:
        """Return the schedules of this queue, by id."""
        return await self._calls.schedules()

    # --- Messages by their id ---------------------------------------------------------------

    async def get(self, message_id: str) -> MessageInfo:
        """Return one message, wherever it is.

        Raises:
            MessageNotFound: it is done, was cancelled or has expired, or never was.
        """
        return await self._calls.get(message_id)

    async def cancel(self, message_id: str) -> None:
        """Take a message out that is not claimed; a dead letter too.

        After a failure that was ridden out, one that is gone counts as cancelled: it may have been
        by this call.

        Raises:
            MessageNotFound: it is done, was cancelled before or has expired, or never was.
            MessageInFlight: it is claimed.
            Unavailable, OutcomeUnknown: no answer within the client's timeout.
        """
        await self._calls.cancel(message_id)

    def list(self, order: MessageOrder = "ready") -> AsyncGenerator[MessageInfo, None]:
        """Yield messages wherever they are, without claiming them; `order` says which.

        A message that stays where it is meanwhile comes once.
        """
        return self._calls.list(order)


def _count_from(first: int, error: BadRequest) -> None:
    """Have an error about a batch count from the first message of all batches."""

    def renamed(text: str) -> str:
        return _PLACE.sub(lambda place: f"messages[{int(place[1]) + first}]", text)

    error.detail = renamed(error.detail)
    if error.field is not None:
        error.fields["field"] = renamed(error.field)
    error.fields["errors"] = [
        RefusedItem(
            index=item.index + first,
            field=renamed(item.field),
            code=item.code,
            detail=renamed(item.detail),
        )
        for item in error.errors
    ]


def _measured(
    messages: Iterable[str | Message],
) -> Iterator[tuple[msgspec.Raw, tuple[int, int, int]]]:
    """Yield messages as they are sent, each with what counts of it."""
    for given in messages:
        message = Message(given) if isinstance(given, str) else given
        encoded = _encoded(message)
        yield encoded, (1, len(message.body.encode()), len(bytes(encoded)))


def _encoded(message: Message) -> msgspec.Raw:
    ttl_ms = milliseconds_or_none(message.ttl, "ttl")
    return msgspec.Raw(
        msgspec.json.encode(
            PushedMessage(
                body=message.body,
                delay_ms=to_milliseconds(to_seconds(message.delay, "delay")),
                priority=message.priority,
                ttl_ms=ttl_ms or 0,
                dedupe_id=message.dedupe_id or "",
                group=message.group or "",
            )
        )
    )
