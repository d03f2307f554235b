"""What the client reads of queues, and the bodies it sends; see `models` for what holds for all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, TypeAlias

import msgspec

from distsync.durations import Duration
from distsync.fences import FenceBody
from distsync.models import Body, View

__all__ = [
    "Message",
    "MessageInfo",
    "MessageOrder",
    "MessagePhase",
    "PeekedMessage",
    "QueueConfig",
    "QueueStats",
    "Schedule",
]

MessagePhase: TypeAlias = Literal["ready", "delayed", "in_flight", "dead"]
"""Where a message is in its life; in a group, it is ready or delayed as well."""

MessageOrder: TypeAlias = Literal["ready", "grouped", "delayed", "in_flight", "dead"]
"""What `Queue.list` goes through: without a group in the order of claims, waiting in groups,
without a group by due time, claimed by deadline, dead letters by time of death."""


class Message(msgspec.Struct, frozen=True):
    """A message to push, with what `Queue.push` takes beside its body."""

    body: str
    delay: Duration = 0.0
    priority: int = 0
    ttl: Duration | None = None
    dedupe_id: str | None = None
    group: str | None = None


class PeekedMessage(View, frozen=True, kw_only=True):
    """A message that could be claimed now."""

    id: str
    body: str
    deliveries: int
    priority: int = 0
    group: str = ""


class MessageInfo(View, frozen=True, kw_only=True):
    """A message, wherever it is. Times are by the clock of Redis; 0 where one does not apply."""

    id: str
    phase: MessagePhase
    body: str
    deliveries: int
    priority: int = 0
    group: str = ""
    size: int = 0
    pushed_at_ms: int = 0
    due_at_ms: int = 0
    expires_at_ms: int = 0
    deadline_ms: int = 0
    died_at_ms: int = 0


class QueueConfig(View, frozen=True, kw_only=True):
    """The configuration of a queue; 0 is no limit."""

    max_length: int = 0
    max_deliveries: int = 0
    dedupe_window_ms: int = 0
    ttl_ms: int = 0
    rate_count: int = 0
    rate_per_ms: int = 1_000
    paused: bool = False

    @property
    def dedupe_window(self) -> float:
        """For how many seconds a dedupe id is remembered."""
        return self.dedupe_window_ms / 1000

    @property
    def ttl(self) -> float:
        """After how many seconds a message that says nothing else expires."""
        return self.ttl_ms / 1000

    @property
    def rate_per(self) -> float:
        """In how many seconds `rate_count` messages are delivered on average, see `configure`."""
        return self.rate_per_ms / 1000


class QueueStats(View, frozen=True, kw_only=True):
    """How much is in a queue now, and what has happened since it was made.

    `grouped` wait in groups, due or not; `ready` and `delayed` have no group.
    """

    ready: int
    grouped: int
    delayed: int
    in_flight: int
    dead: int
    config: QueueConfig
    groups: int = 0
    groups_ready: int = 0
    oldest_ready_ms: int = 0
    pushed: int = 0
    deduplicated: int = 0
    delivered: int = 0
    acked: int = 0
    nacked: int = 0
    timed_out: int = 0
    unclaimed: int = 0
    expired: int = 0
    dead_lettered: int = 0
    redriven: int = 0
    cancelled: int = 0
    purged: int = 0

    @property
    def oldest_ready(self) -> float:
        """For how many seconds the oldest message that can be claimed has waited."""
        return self.oldest_ready_ms / 1000


class Schedule(View, frozen=True, kw_only=True):
    """What is pushed at the times of a cron expression.

    `next_at_ms` is by the clock of Redis; None when its time never comes.
    """

    id: str
    cron: str
    body: str
    timezone: str = "UTC"
    priority: int = 0
    ttl_ms: int = 0
    group: str = ""
    next_at_ms: int | None = None

    @property
    def next_at(self) -> datetime | None:
        """When it is pushed next, in UTC; None is never."""
        if self.next_at_ms is None:
            return None
        return datetime.fromtimestamp(self.next_at_ms / 1000, UTC)

    @property
    def ttl(self) -> float:
        """After how many seconds an unclaimed message expires; 0 is as the queue says."""
        return self.ttl_ms / 1000


# --- Answers the library turns into something else ----------------------------------------------


class Pushed(View, frozen=True, kw_only=True):
    """POST /queue/push."""

    ids: list[str]


class Popped(View, frozen=True, kw_only=True):
    """One message of POST /queue/pop."""

    id: str
    body: str
    receipt: str
    deliveries: int
    visible_ms: int
    priority: int = 0
    group: str = ""


class PopAnswer(View, frozen=True, kw_only=True):
    """POST /queue/pop."""

    messages: list[Popped]
    stale: list[str] = msgspec.field(default_factory=list)


class SettledAnswer(View, frozen=True, kw_only=True):
    """POST /queue/ack, /queue/nack and /queue/extend."""

    dead: list[str] = msgspec.field(default_factory=list)


class StatsAnswer(View, frozen=True, kw_only=True):
    """GET /queue/{name}."""

    stats: QueueStats


class PeekAnswer(View, frozen=True, kw_only=True):
    """GET /queue/{name}/peek."""

    messages: list[PeekedMessage]


class MessagesPage(View, frozen=True, kw_only=True):
    """GET /queue/{name}/messages."""

    messages: list[MessageInfo]
    now_ms: int
    next: str | None = None


class CancelledAnswer(View, frozen=True, kw_only=True):
    """DELETE /queue/{name}/messages/{id}."""


class SchedulesAnswer(View, frozen=True, kw_only=True):
    """GET /queue/{name}/schedules."""

    schedules: list[Schedule]


class UnscheduledAnswer(View, frozen=True, kw_only=True):
    """DELETE /queue/{name}/schedules/{id}."""

    deleted: bool


class QueuePage(View, frozen=True, kw_only=True):
    """GET /queues."""

    queues: list[str]
    next: str | None = None


class PurgedAnswer(View, frozen=True, kw_only=True):
    """POST /queue/{name}/purge."""

    removed: int


class RedrivenAnswer(View, frozen=True, kw_only=True):
    """POST /queue/{name}/redrive."""

    moved: int


# --- Bodies -------------------------------------------------------------------------------------


class PushedMessage(Body, frozen=True, kw_only=True):
    """One message of POST /queue/push."""

    body: str
    delay_ms: int = 0
    priority: int = 0
    ttl_ms: int = 0
    dedupe_id: str = ""
    group: str = ""


class PushBody(Body, frozen=True, kw_only=True):
    """POST /queue/push; the messages are encoded already."""

    queue: str
    messages: list[msgspec.Raw]
    request_id: str
    fence: FenceBody | None = None


class PopBody(Body, frozen=True, kw_only=True):
    """POST /queue/pop."""

    queue: str
    request_id: str
    max: int
    visibility_ms: int
    wait_ms: int = 0
    ack: list[str] = msgspec.field(default_factory=list)


class AckBody(Body, frozen=True, kw_only=True):
    """POST /queue/ack."""

    queue: str
    receipts: list[str]
    request_id: str


class NackBody(Body, frozen=True, kw_only=True):
    """POST /queue/nack."""

    queue: str
    receipts: list[str]
    request_id: str
    delay_ms: int = 0
    dead: bool = False
    spend: bool = True


class ExtendBody(Body, frozen=True, kw_only=True):
    """POST /queue/extend."""

    queue: str
    receipts: list[str]
    request_id: str
    visibility_ms: int


class ConfigBody(Body, frozen=True, kw_only=True):
    """PUT /queue/{name}/config; what is not given stays."""

    max_length: int | None = None
    max_deliveries: int | None = None
    dedupe_window_ms: int | None = None
    ttl_ms: int | None = None
    rate_count: int | None = None
    rate_per_ms: int | None = None
    create: bool = False


class NoBody(Body, frozen=True, kw_only=True):
    """POST /queue/{name}/pause and /queue/{name}/resume."""


class ScheduleBody(Body, frozen=True, kw_only=True):
    """PUT /queue/{name}/schedules/{id}."""

    cron: str
    body: str
    timezone: str = "UTC"
    priority: int = 0
    ttl_ms: int = 0
    group: str = ""


class PurgeBody(Body, frozen=True, kw_only=True):
    """POST /queue/{name}/purge."""

    request_id: str
    target: Literal["messages", "dead"] = "messages"


class RedriveBody(Body, frozen=True, kw_only=True):
    """POST /queue/{name}/redrive."""

    request_id: str
