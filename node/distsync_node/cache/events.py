"""What happens to a node's cache: `CacheNode.step` takes one and the time, and returns effects."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from distsync_node.cache.messages import Message
from distsync_node.cache.types import Change, Copy, OpId, PeerId, Version
from distsync_node.cluster.ring_state import Epoch, RingState


class ClientRead(msgspec.Struct, frozen=True, gc=False):
    """A client of this node reads."""

    op: OpId
    key: str


class ClientWrite(msgspec.Struct, frozen=True, gc=False):
    """A client of this node writes or deletes."""

    op: OpId
    key: str
    change: Change


class ClientGone(msgspec.Struct, frozen=True, gc=False):
    """The client has gone, or its time is over: a read ends with it, a write is not taken back."""

    op: OpId


class PeerMessage(msgspec.Struct, frozen=True, gc=False):
    """A message came."""

    source: PeerId
    epoch: Epoch
    message: Message


class RingAdopted(msgspec.Struct, frozen=True, gc=False):
    """The log has this ring.

    `left_have_ended`: every process that ever was in a ring and is not in this one has certainly
    no node lease, or has retired (`Retired`). When in doubt, False.
    """

    ring: RingState
    left_have_ended: bool


class NodeLease(msgspec.Struct, frozen=True, gc=False):
    """This node holds a lease of that epoch until `ends_ms` by its own clock."""

    epoch: Epoch
    ends_ms: int


class Mark(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What Redis says of a key whose newest value it does not have.

    `version` is the generation: that of the first write which only `places` have.
    """

    version: Version
    places: tuple[PeerId, ...]


class Loaded(msgspec.Struct, frozen=True, gc=False):
    """Redis read a key."""

    request: int
    copy: Copy
    mark: Mark | None


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Redis did what a `RedisPut` asked, or had something newer already."""

    request: int


class Forgotten(msgspec.Struct, frozen=True, gc=False):
    """Redis has forgotten the key, and who has read it: a `RedisPut` did nothing."""

    request: int


class RedisFailed(msgspec.Struct, frozen=True, gc=False):
    """A request of Redis failed. `undone`: it certainly did nothing and will not.

    `full`: and that is because it has no memory left.
    """

    request: int
    undone: bool = False
    full: bool = False


class Drain(msgspec.Struct, frozen=True, gc=False):
    """Write back everything, then retire."""


class Tick(msgspec.Struct, frozen=True, gc=False):
    """Time has passed; see `next_tick_ms`."""


RedisAnswer: TypeAlias = Loaded | Stored | Forgotten | RedisFailed
Event: TypeAlias = (
    ClientRead
    | ClientWrite
    | ClientGone
    | PeerMessage
    | RingAdopted
    | NodeLease
    | Loaded
    | Stored
    | Forgotten
    | RedisFailed
    | Drain
    | Tick
)
