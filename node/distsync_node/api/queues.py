"""POST /queue/..., GET /queue/{name}, GET /queues: any node takes any call.

Each decodes its request, has the queue service run it and encodes the outcome. A request id counts
per client (`Distsync-Client`), as everywhere.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b

import msgspec
from msgspec.json import Decoder, Encoder

from distsync_node.api import queue_schemas as schemas
from distsync_node.api.call import Bodies, Call, Patience
from distsync_node.api.fences import verify_fence
from distsync_node.api.options import ApiOptions
from distsync_node.api.queue_items import check_messages, check_receipts, to_message
from distsync_node.api.reads import query_of
from distsync_node.api.routes import decoded_segment
from distsync_node.errors import BadRequest
from distsync_node.queues.checks import check_body
from distsync_node.queues.schedules import NEVER_MS, Schedule, Specification
from distsync_node.queues.service import QueueService
from distsync_node.queues.types import Fence, MessageInfo, NewMessage, QueueConfigChange
from distsync_node.services.interface import Node

encode = Encoder().encode

REQUEST_ID_BYTES = 20

_CHECK_RECEIPTS = check_receipts("receipts")
_CHECK_ACK = check_receipts("ack")


class QueueEndpoints:
    """The endpoints of queues."""

    def __init__(
        self,
        node: Node,
        queues: QueueService,
        options: ApiOptions,
        patience: Patience,
        bodies: Bodies,
    ) -> None:
        self._node = node
        self._queues = queues
        queues.verify_with(self._verify)
        self._timeout_ms = options.command_timeout_ms
        self._patience = patience
        self._bodies = bodies
        self._push = Decoder(schemas.PushRequest)
        self._pop = Decoder(schemas.PopRequest)
        self._ack = Decoder(schemas.AckRequest)
        self._nack = Decoder(schemas.NackRequest)
        self._extend = Decoder(schemas.ExtendRequest)
        self._config = Decoder(schemas.ConfigRequest)
        self._purge = Decoder(schemas.PurgeRequest)
        self._redrive = Decoder(schemas.RedriveRequest)
        self._switch = Decoder(schemas.SwitchRequest)
        self._schedule = Decoder(schemas.ScheduleRequest)

    async def push(self, call: Call) -> bytes:
        """POST /queue/push"""
        request = await self._bodies.read(call, self._push, check_messages)
        fence = None
        if request.fence is not None:
            fence = Fence(lock=request.fence.lock, token=request.fence.token)
        call.owner_url = self._queues.owner_url(request.queue)
        ids = await self._queues.push(
            request.queue,
            _messages(request),
            request_id=_request_id(call, request.request_id),
            fence=fence,
        )
        return encode(schemas.PushResponse(ids=list(ids)))

    async def _verify(self, fence: Fence) -> None:
        """See `service.Verify`."""
        await verify_fence(self._node, fence.lock, fence.token, timeout_ms=self._timeout_ms)

    async def pop(self, call: Call) -> bytes:
        """POST /queue/pop"""
        request = await self._bodies.read(call, self._pop, _CHECK_ACK)
        request_id = _request_id(call, request.request_id)
        call.owner_url = self._queues.owner_url(request.queue)
        stale: list[str] = []
        if request.ack:
            ack_id = _derived_id(request_id, "ack")
            settled = await self._queues.ack(
                request.queue, request.ack, request_id=ack_id, field="ack"
            )
            stale = list(settled.stale)
        if request.wait_ms:
            self._patience.begin_waiting(call)
        try:
            taken = await self._queues.pop(
                request.queue,
                count=request.max,
                wait_ms=request.wait_ms,
                visibility_ms=request.visibility_ms,
                request_id=request_id,
                in_doubt=bool(request.ack),
            )
        finally:
            if request.wait_ms:
                self._patience.end(call)
        if taken.messages:
            call.undelivered = partial(self._queues.give_back, request.queue, taken)
        return encode(
            schemas.PopResponse(
                messages=[
                    schemas.PoppedMessage(
                        id=one.id,
                        body=one.body.decode("utf-8", "replace"),
                        receipt=one.receipt,
                        deliveries=one.deliveries,
                        visible_ms=one.visible_ms,
                        priority=one.priority,
                        group=one.group,
                    )
                    for one in taken.messages
                ],
                stale=stale,
            )
        )

    async def ack(self, call: Call) -> bytes:
        """POST /queue/ack"""
        request = await self._bodies.read(call, self._ack, _CHECK_RECEIPTS)
        settled = await self._queues.ack(
            request.queue, request.receipts, request_id=_request_id(call, request.request_id)
        )
        settled.check()
        return encode(schemas.SettledResponse(count=len(request.receipts)))

    async def nack(self, call: Call) -> bytes:
        """POST /queue/nack"""
        request = await self._bodies.read(call, self._nack, _CHECK_RECEIPTS)
        settled = await self._queues.nack(
            request.queue,
            request.receipts,
            delay_ms=request.delay_ms,
            dead=request.dead,
            spend=request.spend,
            request_id=_request_id(call, request.request_id),
        )
        settled.check()
        return encode(schemas.SettledResponse(count=len(request.receipts), dead=list(settled.dead)))

    async def extend(self, call: Call) -> bytes:
        """POST /queue/extend"""
        request = await self._bodies.read(call, self._extend, _CHECK_RECEIPTS)
        settled = await self._queues.store.extend(
            request.queue,
            request.receipts,
            visibility_ms=request.visibility_ms,
            request_id=_request_id(call, request.request_id),
        )
        settled.check()
        return encode(schemas.SettledResponse(count=len(request.receipts)))

    async def stats(self, call: Call) -> bytes:
        """GET /queue/{name}"""
        name = _queue(call)
        stats = await self._queues.store.stats(name)
        return encode(schemas.QueueResponse(name=name, stats=stats))

    async def list_names(self, call: Call) -> bytes:
        """GET /queues"""
        query = query_of(call, schemas.QueuesQuery)
        names = await self._queues.store.queue_names(
            prefix=query.prefix, after=query.after, limit=query.limit
        )
        is_full = len(names) == query.limit
        return encode(
            schemas.QueuesResponse(queues=list(names), next=names[-1] if is_full else None)
        )

    async def peek(self, call: Call) -> bytes:
        """GET /queue/{name}/peek"""
        messages = await self._queues.store.peek(
            _queue(call), count=query_of(call, schemas.PeekQuery).max
        )
        return encode(
            schemas.PeekResponse(
                messages=[
                    schemas.PeekedMessage(
                        id=one.id,
                        body=one.body.decode("utf-8", "replace"),
                        deliveries=one.deliveries,
                        priority=one.priority,
                        group=one.group,
                    )
                    for one in messages
                ]
            )
        )

    async def list_messages(self, call: Call) -> bytes:
        """GET /queue/{name}/messages"""
        query = query_of(call, schemas.MessagesQuery)
        page = await self._queues.store.list_page(
            _queue(call), query.order, cursor=query.cursor, limit=query.limit
        )
        return encode(
            schemas.MessagesResponse(
                messages=[_view(one) for one in page.messages],
                now_ms=page.now_ms,
                next=page.cursor,
            )
        )

    async def get_message(self, call: Call) -> bytes:
        """GET /queue/{name}/messages/{id}"""
        return encode(_view(await self._queues.store.get(_queue(call), _message_id(call))))

    async def cancel_message(self, call: Call) -> bytes:
        """DELETE /queue/{name}/messages/{id}"""
        request_id = _request_id(call, query_of(call, schemas.DeleteQuery).request_id)
        await self._queues.store.cancel(_queue(call), _message_id(call), request_id=request_id)
        return encode(schemas.CancelledResponse())

    async def configure(self, call: Call) -> bytes:
        """PUT /queue/{name}/config"""
        name = _queue(call)
        request = await self._bodies.read(call, self._config)
        change = QueueConfigChange(
            max_length=request.max_length,
            max_deliveries=request.max_deliveries,
            dedupe_window_ms=request.dedupe_window_ms,
            ttl_ms=request.ttl_ms,
            rate_count=request.rate_count,
            rate_per_ms=request.rate_per_ms,
        )
        return encode(await self._queues.configure(name, change, create=request.create))

    async def pause(self, call: Call) -> bytes:
        """POST /queue/{name}/pause"""
        return await self._set_paused(call, paused=True)

    async def resume(self, call: Call) -> bytes:
        """POST /queue/{name}/resume"""
        return await self._set_paused(call, paused=False)

    async def _set_paused(self, call: Call, *, paused: bool) -> bytes:
        name = _queue(call)
        await self._bodies.read_optional(call, self._switch)
        change = QueueConfigChange(paused=paused)
        return encode(await self._queues.configure(name, change, create=False))

    async def purge(self, call: Call) -> bytes:
        """POST /queue/{name}/purge"""
        name = _queue(call)
        request = await self._bodies.read_optional(call, self._purge)
        removed = await self._queues.store.purge(
            name, request.target, request_id=_request_id(call, request.request_id)
        )
        return encode(schemas.PurgedResponse(removed=removed))

    async def redrive(self, call: Call) -> bytes:
        """POST /queue/{name}/redrive"""
        name = _queue(call)
        request = await self._bodies.read_optional(call, self._redrive)
        moved = await self._queues.redrive(name, request_id=_request_id(call, request.request_id))
        return encode(schemas.RedrivenResponse(moved=moved))

    async def put_schedule(self, call: Call) -> bytes:
        """PUT /queue/{name}/schedules/{id}"""
        name, schedule_id = _queue(call), decoded_segment(call, "id", 1)
        request = await self._bodies.read(call, self._schedule)
        specification = Specification(
            cron=request.cron,
            timezone=request.timezone,
            message=NewMessage(
                body=request.body.encode(),
                priority=request.priority,
                ttl_ms=request.ttl_ms,
                group=request.group,
            ),
        )
        schedule = await self._queues.store.schedules.put(name, schedule_id, specification)
        return encode(_schedule_view(schedule))

    async def list_schedules(self, call: Call) -> bytes:
        """GET /queue/{name}/schedules"""
        schedules = await self._queues.store.schedules.list(_queue(call))
        return encode(
            schemas.SchedulesResponse(schedules=[_schedule_view(one) for one in schedules])
        )

    async def delete_schedule(self, call: Call) -> bytes:
        """DELETE /queue/{name}/schedules/{id}"""
        query_of(call, schemas.DeleteQuery)
        deleted = await self._queues.store.schedules.delete(
            _queue(call), decoded_segment(call, "id", 1)
        )
        return encode(schemas.UnscheduledResponse(deleted=deleted))


def _schedule_view(schedule: Schedule) -> schemas.ScheduleView:
    specification = schedule.specification
    message = specification.message
    return schemas.ScheduleView(
        id=schedule.id,
        cron=specification.cron,
        timezone=specification.timezone,
        body=message.body.decode("utf-8", "replace"),
        priority=message.priority,
        ttl_ms=message.ttl_ms,
        group=message.group,
        next_at_ms=None if schedule.next_at_ms == NEVER_MS else schedule.next_at_ms,
    )


def _queue(call: Call) -> str:
    return decoded_segment(call, "name")


def _message_id(call: Call) -> str:
    message_id = decoded_segment(call, "id", 1)
    try:
        return msgspec.convert(message_id, schemas.MessageId)
    except msgspec.ValidationError:
        raise BadRequest("id: is not the id of a message", field="id") from None


def _view(message: MessageInfo) -> schemas.MessageView:
    return schemas.MessageView(
        id=message.id,
        phase=message.phase,
        body=message.body.decode("utf-8", "replace"),
        priority=message.priority,
        group=message.group,
        size=message.size,
        deliveries=message.deliveries,
        pushed_at_ms=message.pushed_at_ms,
        due_at_ms=message.due_at_ms,
        expires_at_ms=message.expires_at_ms,
        deadline_ms=message.deadline_ms,
        died_at_ms=message.died_at_ms,
    )


def _request_id(call: Call, given: str | None) -> str:
    """Return the id under which queues remember a request: ids of two clients never meet."""
    name = call.name_command(given)
    if given is None or not call.client:
        return name
    return _derived_id(call.client, name)


def _derived_id(first: str, second: str) -> str:
    """Return an id that two texts give and no other two."""
    text = first.encode() + b"\0" + second.encode()
    return blake2b(text, digest_size=REQUEST_ID_BYTES).hexdigest()


def _messages(request: schemas.PushRequest) -> list[NewMessage]:
    if (request.body is None) == (request.messages is None):
        raise BadRequest("messages: give either body or messages", field="messages")
    if request.messages is None:
        body = (request.body or "").encode()
        check_body(body, "body")
        return [NewMessage(body=body)]
    return [to_message(one) for one in request.messages]
