"""The calls of one queue, as the API has them: each a request that is repeated until answered.

A call that changes something carries one request id through all its repetitions, so that the
cluster does it once. Any node takes any call, also one that knows no leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

import msgspec

from distsync.batches import chunks
from distsync.core import Core
from distsync.errors import DistSyncError, StaleReceipt
from distsync.fences import FenceBody
from distsync.identity import new_request_id
from distsync.lease import Span
from distsync.models import Body
from distsync.paths import message_path, queue_path, schedule_path
from distsync.queue_models import (
    AckBody,
    CancelledAnswer,
    ConfigBody,
    ExtendBody,
    MessageInfo,
    MessageOrder,
    MessagesPage,
    NackBody,
    NoBody,
    PeekAnswer,
    PeekedMessage,
    PopAnswer,
    PopBody,
    PurgeBody,
    PurgedAnswer,
    PushBody,
    Pushed,
    QueueConfig,
    QueuePage,
    QueueStats,
    RedriveBody,
    RedrivenAnswer,
    Schedule,
    ScheduleBody,
    SchedulesAnswer,
    SettledAnswer,
    StatsAnswer,
    UnscheduledAnswer,
)
from distsync.transport import Repeat, Reply

__all__ = ["MAX_BATCH", "MAX_BODY_BYTES", "QueueCalls", "list_queues"]

_log = logging.getLogger("distsync")

T = TypeVar("T")

MAX_BATCH: Final = 100
"""Messages of a push or a pop, receipts of an ack."""

MAX_BODY_BYTES: Final = 256 * 1024
"""UTF-8 of one message."""

_GIVE_BACK_SECONDS: Final = 60.0
_MAX_OWNERS_KEPT: Final = 10_000


class QueueCalls:
    """The calls of one queue."""

    def __init__(self, core: Core, name: str) -> None:
        self.core = core
        self.name = name
        self._path = queue_path(name)
        self._taking_back: set[asyncio.Task[None]] = set()

    async def push(self, messages: list[msgspec.Raw], fence: FenceBody | None) -> list[str]:
        """Push up to 100 messages."""
        body = PushBody(
            queue=self.name, messages=messages, fence=fence, request_id=new_request_id()
        )
        return (await self._post("/queue/push", body, Pushed)).value.ids

    async def pop(
        self, count: int, wait_ms: int, visibility_ms: int, ack: Sequence[str] = ()
    ) -> Reply[PopAnswer]:
        """Claim up to `count` messages; those of the receipts `ack` are done.

        If this is cancelled, its connection ends, and the cluster takes back what it claimed unless
        the answer is on its way already. So the same is asked once more, in the background, and
        what that brings is given back.
        """
        body = PopBody(
            queue=self.name,
            max=count,
            wait_ms=wait_ms,
            visibility_ms=visibility_ms,
            ack=list(ack),
            request_id=new_request_id(),
        )
        try:
            return await self._post("/queue/pop", body, PopAnswer, wait_seconds=wait_ms / 1000)
        except asyncio.CancelledError:
            task = self.core.ghosts.run(self._take_back(body), name="distsync-take-back")
            self._taking_back.add(task)
            task.add_done_callback(self._taking_back.discard)
            raise

    async def taken_back(self, seconds: float) -> None:
        """Wait, at most so long, until nothing is claimed any more for pops that were cancelled."""
        if self._taking_back:
            await asyncio.wait(self._taking_back, timeout=seconds)

    async def _take_back(self, body: PopBody) -> None:
        again = msgspec.structs.replace(body, wait_ms=0, ack=[])
        until = self.core.clock.now() + _GIVE_BACK_SECONDS
        try:
            reply = await self._post("/queue/pop", again, PopAnswer, give_up_at=until)
        except DistSyncError as error:
            _log.warning("%s: a cancelled pop may have claimed messages: %s", self.name, error)
        else:
            await self._give_back([message.receipt for message in reply.value.messages])

    async def ack(self, receipts: Sequence[str], request_id: str | None = None) -> None:
        """Say that messages are done; the same `request_id` says it once."""
        body = AckBody(
            queue=self.name, receipts=list(receipts), request_id=request_id or new_request_id()
        )
        await self._post("/queue/ack", body, SettledAnswer)

    async def nack(
        self,
        receipts: Sequence[str],
        *,
        delay_ms: int = 0,
        dead: bool = False,
        spend: bool = True,
        give_up_at: float | None = None,
    ) -> list[str]:
        """Say that messages failed; returns the ids of those that are dead letters now.

        Without `spend` the delivery is not counted.
        """
        body = NackBody(
            queue=self.name,
            receipts=list(receipts),
            delay_ms=delay_ms,
            dead=dead,
            spend=spend,
            request_id=new_request_id(),
        )
        reply = await self._post("/queue/nack", body, SettledAnswer, give_up_at=give_up_at)
        return reply.value.dead

    async def extend(
        self,
        receipts: Sequence[str],
        visibility_ms: int,
        *,
        give_up_at: float | None = None,
        attempt_seconds: float | None = None,
    ) -> Span:
        """Keep claims for longer; returns for how long."""
        body = ExtendBody(
            queue=self.name,
            receipts=list(receipts),
            visibility_ms=visibility_ms,
            request_id=new_request_id(),
        )
        reply = await self._post(
            "/queue/extend",
            body,
            SettledAnswer,
            give_up_at=give_up_at,
            attempt_seconds=attempt_seconds,
        )
        return Span(reply.sent_at, visibility_ms / 1000)

    def give_back(self, receipts: Sequence[str]) -> asyncio.Task[None]:
        """Give back in the background what nobody here has begun; it spends no delivery."""
        return self.core.ghosts.run(self._give_back(receipts), name="distsync-give-back")

    async def _give_back(self, receipts: Sequence[str]) -> None:
        until = self.core.clock.now() + _GIVE_BACK_SECONDS
        for batch in chunks(receipts, MAX_BATCH):
            try:
                await self.nack(batch, spend=False, give_up_at=until)
            except StaleReceipt:
                pass  # they have come back already
            except DistSyncError as error:
                _log.warning(
                    "%s: claims could not be given back and will end: %s", self.name, error
                )

    async def stats(self) -> QueueStats:
        """Return how much there is and what has happened."""
        return (await self._get(self._path, StatsAnswer)).stats

    async def peek(self, count: int) -> list[PeekedMessage]:
        """Return what could be claimed now."""
        return (await self._get(f"{self._path}/peek?max={count}", PeekAnswer)).messages

    async def get(self, message_id: str) -> MessageInfo:
        """Return one message, wherever it is."""
        return await self._get(message_path(self.name, message_id), MessageInfo)

    async def cancel(self, message_id: str) -> None:
        """Take a message out that is not claimed."""
        query = urlencode({"request_id": new_request_id()})
        await self._delete(f"{message_path(self.name, message_id)}?{query}", CancelledAnswer)

    async def schedule(self, schedule_id: str, body: ScheduleBody) -> Schedule:
        """Add a schedule, or replace the one of that id."""
        path = schedule_path(self.name, schedule_id)
        return (await self._post(path, body, Schedule, method="PUT")).value

    async def unschedule(self, schedule_id: str) -> bool:
        """Forget a schedule; returns whether there was one, or may have been after a doubt."""
        reply = await self._delete(schedule_path(self.name, schedule_id), UnscheduledAnswer)
        return reply.value.deleted or reply.after_doubt

    async def schedules(self) -> list[Schedule]:
        """Return all schedules, by id."""
        return (await self._get(f"{self._path}/schedules", SchedulesAnswer)).schedules

    async def page(self, order: MessageOrder, cursor: str, limit: int = MAX_BATCH) -> MessagesPage:
        """Return the messages of an order that follow a cursor; an empty one is the start."""
        query = urlencode({"order": order, "cursor": cursor, "limit": limit})
        return await self._get(f"{self._path}/messages?{query}", MessagesPage)

    async def list(self, order: MessageOrder) -> AsyncGenerator[MessageInfo, None]:
        """Yield the messages of an order, page by page."""
        cursor: str | None = ""
        while cursor is not None:
            page = await self.page(order, cursor)
            for message in page.messages:
                yield message
            cursor = page.next

    async def configure(self, body: ConfigBody) -> QueueConfig:
        """Change the configuration; returns all of it."""
        path = f"{self._path}/config"
        reply = await self._post(path, body, QueueConfig, repeat=Repeat.IDEMPOTENT, method="PUT")
        return reply.value

    async def switch(self, verb: str) -> QueueConfig:
        """Pause or resume."""
        path = f"{self._path}/{verb}"
        return (await self._post(path, NoBody(), QueueConfig, repeat=Repeat.IDEMPOTENT)).value

    async def purge(self, *, dead: bool) -> int:
        """Remove all messages, or all dead letters; returns how many."""
        body = PurgeBody(target="dead" if dead else "messages", request_id=new_request_id())
        return (await self._post(f"{self._path}/purge", body, PurgedAnswer)).value.removed

    async def redrive(self) -> int:
        """Put the dead letters back into the queue; returns how many."""
        body = RedriveBody(request_id=new_request_id())
        return (await self._post(f"{self._path}/redrive", body, RedrivenAnswer)).value.moved

    async def _post(self, path: str, body: Body, kind: type[T], **options: Any) -> Reply[T]:
        """Ask the owner of the queue where it is known: that saves a hop."""
        owner = self.core.queue_owners.get(self.name)
        reply = await self.core.transport.post(
            path, body, kind, needs_leader=False, prefer=owner, **options
        )
        self._note_owner(reply)
        return reply

    async def _delete(self, path: str, kind: type[T]) -> Reply[T]:
        owner = self.core.queue_owners.get(self.name)
        reply = await self.core.transport.delete(path, kind, needs_leader=False, prefer=owner)
        self._note_owner(reply)
        return reply

    def _note_owner(self, reply: Reply[T]) -> None:
        owners = self.core.queue_owners
        if reply.owner is not None:
            if self.name not in owners and len(owners) >= _MAX_OWNERS_KEPT:
                owners.clear()
            owners[self.name] = reply.owner

    async def _get(self, path: str, kind: type[T]) -> T:
        return (await self.core.transport.get(path, kind, needs_leader=False)).value


async def list_queues(core: Core, prefix: str) -> AsyncGenerator[str, None]:
    """Yield the names of queues, page by page."""
    after = ""
    while True:
        query = urlencode({"prefix": prefix, "after": after, "limit": MAX_BATCH})
        reply = await core.transport.get(f"/queues?{query}", QueuePage, needs_leader=False)
        for name in reply.value.queues:
            yield name
        if reply.value.next is None:
            return
        after = reply.value.next
