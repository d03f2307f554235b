"""What a node's cache wants done, in this order. Nothing has to be on disk before a message leaves:
what must be in Redis first is asked for first, and its answer is another event."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from distsync_node.cache.events import Mark
from distsync_node.cache.messages import Message
from distsync_node.cache.types import ABSENT, Copy, OpId, Outcome, PeerId, Version
from distsync_node.cluster.ring_state import Epoch


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a message to a process, under an epoch. It may be lost."""

    target: PeerId
    epoch: Epoch
    message: Message


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Tell the client."""

    op: OpId
    outcome: Outcome


class RedisLoad(msgspec.Struct, frozen=True, gc=False):
    """Read a key for the home of `epoch`; from then on Redis refuses homes of older epochs."""

    request: int
    key: str
    epoch: Epoch


class RedisPut(msgspec.Struct, frozen=True, gc=False):
    """Write `copy` if it is newer, which ends marks up to its version; then set `mark`.

    Marks up to `ended` stand for writes that were never made: they end. All of it in one step, and
    nothing if a home of a newer epoch has read the key.
    """

    request: int
    key: str
    epoch: Epoch
    copy: Copy | None
    mark: Mark | None
    ended: Version = ABSENT


class EpochAcknowledged(msgspec.Struct, frozen=True, gc=False):
    """Nothing is done under an older epoch any more: the next heartbeat may say so."""

    epoch: Epoch


class LineDropped(msgspec.Struct, frozen=True, gc=False):
    """A value that only this node had is gone (local durability): count it, log it."""

    key: str
    version: Version


class Retired(msgspec.Struct, frozen=True, gc=False):
    """Everything is in Redis and this node serves nothing any more: it may leave the ring."""


Effect: TypeAlias = Send | Answer | RedisLoad | RedisPut | EpochAcknowledged | LineDropped | Retired
