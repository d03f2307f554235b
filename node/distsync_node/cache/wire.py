"""Messages between caches as they travel: parcels in msgpack. Pure.

A parcel is for one process: what was meant for an earlier one at the same address is dropped, and
so is what comes from another cluster. Each message carries the epoch under which it was sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from distsync_node.cache.effects import Send
from distsync_node.cache.messages import Invalidate, Message, Snoop
from distsync_node.cache.types import PeerId
from distsync_node.cluster.ring_state import Epoch
from distsync_node.raft.types import MemberId

SNOOP_PATH: Final = "/cache/handle_snoop_read"
INVALIDATE_PATH: Final = "/cache/handle_invalidate"
MESSAGES_PATH: Final = "/cache/handle_messages"
PATHS: Final = (SNOOP_PATH, INVALIDATE_PATH, MESSAGES_PATH)


class Parcel(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Messages of one process to another, in order."""

    cluster_id: str
    source: PeerId
    target: PeerId
    messages: tuple[tuple[Epoch, Message], ...]


_encode = msgspec.msgpack.Encoder().encode
decode_parcel = msgspec.msgpack.Decoder(Parcel).decode


def path_of(message: Message) -> str:
    """Return the path a message is sent to."""
    if isinstance(message, Snoop):
        return SNOOP_PATH
    return INVALIDATE_PATH if isinstance(message, Invalidate) else MESSAGES_PATH


def encode_message(send: Send) -> bytes:
    """Return a message as part of a parcel."""
    return _encode((send.epoch, send.message))


def encode_parcel(
    cluster_id: str, source: PeerId, target: PeerId, messages: Sequence[bytes]
) -> bytes:
    """Return a parcel of encoded messages."""
    return _encode((cluster_id, source, target, [msgspec.Raw(one) for one in messages]))


def member_of(peer: PeerId) -> MemberId:
    """Return the member of a process (see `types.peer_id`)."""
    return MemberId(peer.rsplit("/", 2)[1])
