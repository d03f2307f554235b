"""Bodies of the queue endpoints; see `schemas` for what holds for all."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from distsync_node.api.schemas import (
    NAME_PATTERN,
    FenceOfWrite,
    RequestId,
    WaitMs,
)
from distsync_node.queues import limits
from distsync_node.queues.types import Order, Phase, PurgeTarget, QueueStats

MAX_PUSH_BYTES = 6 * 1024 * 1024  # of JSON

QueueName = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.MAX_NAME_BYTES,
        description="Queue name, 1 to 512 bytes of UTF-8 without control characters",
        extra_json_schema={"pattern": NAME_PATTERN},
    ),
]
MessageBody = Annotated[
    str, Meta(max_length=limits.MAX_BODY_BYTES, description="At most 256 KiB of UTF-8")
]
Receipts = Annotated[
    list[str],
    Meta(min_length=1, max_length=limits.MAX_BATCH, description="As a pop returned them"),
]
FinishedReceipts = Annotated[
    list[str],
    Meta(max_length=limits.MAX_BATCH, description="Of earlier pops: these messages are done"),
]
VisibilityMs = Annotated[
    int,
    Meta(
        ge=limits.MIN_VISIBILITY_MS,
        le=limits.MAX_VISIBILITY_MS,
        description="How long the claim lasts, milliseconds; then the message is delivered again",
    ),
]
DelayMs = Annotated[int, Meta(ge=0, le=limits.MAX_DELAY_MS)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    pass


class _Response(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class MessageToPush(_Request, frozen=True):
    """One message of a push. `ttl_ms` 0 is the queue's own."""

    body: MessageBody
    delay_ms: DelayMs = 0
    priority: Annotated[int, Meta(ge=0, le=limits.MAX_PRIORITY)] = 0
    ttl_ms: Annotated[int, Meta(ge=0, le=limits.MAX_TTL_MS)] = 0
    dedupe_id: Annotated[str, Meta(max_length=limits.MAX_DEDUPE_ID_BYTES)] = ""
    group: Annotated[str, Meta(max_length=limits.MAX_GROUP_BYTES)] = ""


class PushRequest(_Request, frozen=True):
    """POST /queue/push: either `body`, or `messages`"""

    queue: QueueName
    body: MessageBody | None = None
    messages: (
        Annotated[list[MessageToPush], Meta(min_length=1, max_length=limits.MAX_BATCH)] | None
    ) = None
    fence: FenceOfWrite | None = None
    request_id: RequestId | None = None


class PushResponse(_Response, frozen=True):
    """The ids of the messages, in their order; of a duplicate, the id of the first"""

    ids: list[str]


class PopRequest(_Request, frozen=True):
    """POST /queue/pop. `ack`: first these are done, as by /queue/ack; see `stale` in the answer"""

    queue: QueueName
    ack: FinishedReceipts = []
    max: Annotated[int, Meta(ge=1, le=limits.MAX_BATCH)] = 1
    wait_ms: WaitMs = 0
    visibility_ms: VisibilityMs = 30_000
    request_id: RequestId | None = None


class PoppedMessage(_Response, frozen=True):
    """A message that is claimed for `visible_ms`; `deliveries` counts this one"""

    id: str
    body: str
    receipt: str
    deliveries: int
    visible_ms: int
    priority: int
    group: str


class PopResponse(_Response, frozen=True):
    """Empty when there was none in time. `stale`: receipts of `ack` whose claim had ended"""

    messages: list[PoppedMessage]
    stale: list[str] = []


class AckRequest(_Request, frozen=True):
    """POST /queue/ack"""

    queue: QueueName
    receipts: Receipts
    request_id: RequestId | None = None


class NackRequest(_Request, frozen=True):
    """POST /queue/nack. `dead`: to the dead letters at once. `spend` false: the delivery is not
    counted, for messages that were not begun"""

    queue: QueueName
    receipts: Receipts
    delay_ms: DelayMs = 0
    dead: bool = False
    spend: bool = True
    request_id: RequestId | None = None


class ExtendRequest(_Request, frozen=True):
    """POST /queue/extend"""

    queue: QueueName
    receipts: Receipts
    visibility_ms: VisibilityMs = 30_000
    request_id: RequestId | None = None


class SettledResponse(_Response, frozen=True):
    """How many receipts were served, and the ids of messages that became dead letters"""

    count: int
    dead: list[str] = []


class ConfigRequest(_Request, frozen=True):
    """PUT /queue/{name}/config: what is not given stays; 0 is no limit. `create` makes the queue.
    On average `rate_count` messages are delivered in each `rate_per_ms`, and at most twice as many
    in any one such time: what was not used of one is saved up"""

    max_length: Annotated[int, Meta(ge=0, le=limits.MAX_LENGTH)] | None = None
    max_deliveries: Annotated[int, Meta(ge=0, le=limits.MAX_DELIVERIES)] | None = None
    dedupe_window_ms: Annotated[int, Meta(ge=0, le=limits.MAX_DEDUPE_WINDOW_MS)] | None = None
    ttl_ms: Annotated[int, Meta(ge=0, le=limits.MAX_TTL_MS)] | None = None
    rate_count: Annotated[int, Meta(ge=0, le=limits.MAX_RATE_COUNT)] | None = None
    rate_per_ms: Annotated[int, Meta(ge=1, le=limits.MAX_RATE_PER_MS)] | None = None
    create: bool = False
    request_id: RequestId | None = None


class QueueResponse(_Response, frozen=True):
    """GET /queue/{name}"""

    name: str
    stats: QueueStats


class QueuesQuery(_Request, frozen=True):
    """GET /queues"""

    prefix: Annotated[str, Meta(max_length=limits.MAX_NAME_BYTES)] = ""
    after: Annotated[str, Meta(max_length=limits.MAX_NAME_BYTES)] = ""
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_BATCH)] = limits.MAX_BATCH


class QueuesResponse(_Response, frozen=True):
    """Names in the order of their bytes; `next` is the value of `after` for the next page"""

    queues: list[str]
    next: str | None


class PeekQuery(_Request, frozen=True):
    """GET /queue/{name}/peek"""

    max: Annotated[int, Meta(ge=1, le=limits.MAX_BATCH)] = 1


MessageId = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[0-9a-z-]+$")]


class MessagesQuery(_Request, frozen=True):
    """GET /queue/{name}/messages"""

    order: Order = Order.READY
    cursor: Annotated[str, Meta(max_length=2_048)] = ""
    limit: Annotated[int, Meta(ge=1, le=limits.MAX_BATCH)] = limits.MAX_BATCH


class MessageView(_Response, frozen=True):
    """A message; times are by the clock of Redis, 0 where one does not apply"""

    id: str
    phase: Phase
    body: str
    priority: int
    group: str
    size: int
    deliveries: int
    pushed_at_ms: int
    due_at_ms: int
    expires_at_ms: int
    deadline_ms: int
    died_at_ms: int


class MessagesResponse(_Response, frozen=True):
    """A page; `next` is the value of `cursor` for the next one"""

    messages: list[MessageView]
    now_ms: int
    next: str | None


class DeleteQuery(_Request, frozen=True):
    """DELETE /queue/{name}/messages/{id}, /queue/{name}/schedules/{id}"""

    request_id: RequestId | None = None


class CancelledResponse(_Response, frozen=True):
    """The message is gone"""

    cancelled: bool = True


class PeekedMessage(_Response, frozen=True):
    """A message that could be claimed now"""

    id: str
    body: str
    deliveries: int
    priority: int
    group: str


class PeekResponse(_Response, frozen=True):
    """In the order in which they would be claimed"""

    messages: list[PeekedMessage]


class PurgeRequest(_Request, frozen=True):
    """POST /queue/{name}/purge: all messages, claimed ones too, or all dead letters"""

    target: PurgeTarget = PurgeTarget.MESSAGES
    request_id: RequestId | None = None


class PurgedResponse(_Response, frozen=True):
    """How many were removed"""

    removed: int


class RedriveRequest(_Request, frozen=True):
    """POST /queue/{name}/redrive"""

    request_id: RequestId | None = None


class RedrivenResponse(_Response, frozen=True):
    """How many dead letters are in the queue again"""

    moved: int


class SwitchRequest(_Request, frozen=True):
    """POST /queue/{name}/pause, /queue/{name}/resume"""

    request_id: RequestId | None = None


ScheduleId = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.MAX_SCHEDULE_ID_BYTES,
        extra_json_schema={"pattern": NAME_PATTERN},
    ),
]


class ScheduleRequest(_Request, frozen=True):
    """PUT /queue/{name}/schedules/{id}: push `body` whenever `cron` is due in `timezone`"""

    cron: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=limits.MAX_CRON_BYTES,
            description="minute hour day month weekday, or six fields with seconds in front",
        ),
    ]
    body: Annotated[
        str, Meta(max_length=limits.MAX_SCHEDULED_BODY_BYTES, description="At most 16 KiB")
    ]
    timezone: Annotated[str, Meta(min_length=1, max_length=64, description="Of IANA")] = "UTC"
    priority: Annotated[int, Meta(ge=0, le=limits.MAX_PRIORITY)] = 0
    ttl_ms: Annotated[int, Meta(ge=0, le=limits.MAX_TTL_MS)] = 0
    group: Annotated[str, Meta(max_length=limits.MAX_GROUP_BYTES)] = ""
    request_id: RequestId | None = None


class ScheduleView(_Response, frozen=True):
    """A schedule; `next_at_ms` by the clock of Redis, null when its time never comes"""

    id: str
    cron: str
    timezone: str
    body: str
    priority: int
    ttl_ms: int
    group: str
    next_at_ms: int | None


class SchedulesResponse(_Response, frozen=True):
    """All schedules of a queue, by id"""

    schedules: list[ScheduleView]


class UnscheduledResponse(_Response, frozen=True):
    """Whether there was one"""

    deleted: bool
