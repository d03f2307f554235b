"""What goes into and comes out of a queue. Durations and times are integer milliseconds.

A time (`..._at_ms`) is by the clock of Redis; `now_ms` beside it says what that clock showed.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import msgspec

from distsync_node.errors import StaleReceipt


class NewMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message to push. `ttl_ms` 0 is the queue's own, which is none unless configured."""

    body: bytes
    delay_ms: int = 0
    priority: int = 0
    ttl_ms: int = 0
    dedupe_id: str = ""
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """The lock under which a push is made.

    `checked` is the mark of a `FenceUnverified`, given back once a linearizable read has shown that
    the token is the lock's current exclusive grant; empty before that.
    """

    lock: str
    token: int
    checked: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """The messages are in the queue. `ids` are in the order of the messages.

    `ready` of them can be claimed now. `repeated`: this request was served before; nothing was
    done.
    """

    ids: tuple[str, ...]
    ready: int
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceUnverified:
    """Nothing was pushed: the token is newer than any seen.

    Look it up by a linearizable read and push again with the mark.
    """

    mark: str


PushOutcome: TypeAlias = Pushed | FenceUnverified


class ClaimedMessage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message as a pop gives it; its receipt is good for `visible_ms` from Redis' answer."""

    id: str
    receipt: str
    body: bytes
    deliveries: int
    visible_ms: int
    pushed_at_ms: int
    priority: int
    group: str


class PopStatus(StrEnum):
    """What a pop met."""

    OK = "ok"
    PAUSED = "paused"
    LIMITED = "limited"  # by the rate of the queue
    REPEATED = "repeated"  # what the first call of this request claimed and still holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Popped:
    """What a pop claimed.

    `more`: it stopped at a bound of work and should be called again at once if nothing was claimed.
    `next_ms`: if nothing was claimed, how long until a delay or a claim ends; None when none is
    known. `attempt` names this try, for `unclaim`.
    """

    messages: tuple[ClaimedMessage, ...]
    status: PopStatus
    more: bool
    next_ms: int | None
    attempt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What became of receipts. `stale` are those whose claim had ended: nothing was done for them.

    `ready`: messages that can be claimed now and could not before. `dead`: ids of dead letters
    made.
    """

    stale: tuple[str, ...]
    ready: int = 0
    dead: tuple[str, ...] = ()
    repeated: bool = False

    def check(self) -> None:
        """Return if all receipts were good.

        Raises:
            StaleReceipt: some were not; the others have been served all the same.
        """
        if self.stale:
            raise StaleReceipt(
                f"the claims of {len(self.stale)} receipts have ended", stale=list(self.stale)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unclaimed:
    """What an attempt gave back: how many messages, and how many can be claimed now."""

    returned: int
    ready: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What a sweep did: messages moved, whether there is more due, how long until more will be."""

    moved: int
    more: bool
    next_ms: int | None


class Phase(StrEnum):
    """Where a message is in its life."""

    READY = "ready"
    DELAYED = "delayed"
    IN_FLIGHT = "in_flight"
    DEAD = "dead"


class Order(StrEnum):
    """What `list_page` goes through."""

    READY = "ready"  # without a group, in the order of claims
    GROUPED = "grouped"  # waiting in groups, by group and then in order
    DELAYED = "delayed"  # without a group, by due time
    IN_FLIGHT = "in_flight"  # by deadline
    DEAD = "dead"  # by time of death


class MessageInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A message as get, peek and list tell it. A time of 0: does not apply."""

    id: str
    phase: Phase
    body: bytes
    priority: int
    group: str
    size: int
    deliveries: int
    pushed_at_ms: int
    due_at_ms: int
    expires_at_ms: int
    deadline_ms: int
    died_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Part of a list. `cursor` continues it; None at its end."""

    messages: tuple[MessageInfo, ...]
    now_ms: int
    cursor: str | None


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The configuration of a queue; 0 is no limit."""

    max_length: int
    max_deliveries: int
    dedupe_window_ms: int
    ttl_ms: int
    rate_count: int
    rate_per_ms: int
    paused: bool


class QueueConfigChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields to change; None stays as it is."""

    max_length: int | None = None
    max_deliveries: int | None = None
    dedupe_window_ms: int | None = None
    ttl_ms: int | None = None
    rate_count: int | None = None
    rate_per_ms: int | None = None
    paused: bool | None = None


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is now, and what has happened since the queue was made.

    `grouped` wait in groups, due or not. `delayed` have no group.
    """

    ready: int
    grouped: int
    delayed: int
    in_flight: int
    dead: int
    groups: int
    groups_ready: int
    oldest_ready_ms: int
    requests_remembered: int
    born_at: int
    pushed: int
    deduplicated: int
    delivered: int
    acked: int
    nacked: int
    timed_out: int
    unclaimed: int
    expired: int
    dead_lettered: int
    redriven: int
    cancelled: int
    purged: int
    config: QueueConfig


class PurgeTarget(StrEnum):
    """What a purge removes."""

    MESSAGES = "messages"
    DEAD = "dead"
