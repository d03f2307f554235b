"""`RedisLoad` and `RedisPut` as calls of the Lua scripts, and what those answer as events: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import (
    Forgotten,
    Loaded,
    Mark,
    RedisAnswer,
    RedisFailed,
    Stored,
)
from distsync_node.cache.scripts import GRACE_MS
from distsync_node.cache.types import Copy, PeerId, Version

_encode = msgspec.msgpack.encode
_FENCES: Final = msgspec.msgpack.Decoder(tuple[tuple[str, int], ...])
_PLACES: Final = msgspec.msgpack.Decoder(tuple[PeerId, ...])


def arguments(effect: RedisLoad | RedisPut, grace_ms: int = GRACE_MS) -> tuple[str, list[bytes]]:
    """Return the name of the script and its ARGV."""
    if isinstance(effect, RedisLoad):
        return "load", [_encode((effect.epoch, grace_ms))]
    write: tuple[object, ...] = ()
    marked: tuple[object, ...] = ()
    # Bytes are arguments of their own: Redis' msgpack does not know them.
    fences = places = value = b""
    copy, mark = effect.copy, effect.mark
    if copy is not None:
        write = (*copy.version, copy.remaining_ms, copy.value is not None)
        fences, value = _encode(copy.fences), copy.value or b""
    if mark is not None:
        marked, places = tuple(mark.version), _encode(mark.places)
    return "put", [
        _encode((effect.epoch, grace_ms, write, marked, effect.ended)),
        fences,
        places,
        value,
    ]


def answer(effect: RedisLoad | RedisPut, reply: Sequence[bytes | None]) -> RedisAnswer:
    """Return the event for what the script has returned."""
    if reply[0] == b"forgotten":
        return Forgotten(effect.request)
    if reply[0] != b"ok":
        # This time nothing was done. But a command whose answer was lost is sent again, and the
        # first one may have come before the newer home did.
        return RedisFailed(effect.request, undone=isinstance(effect, RedisLoad))
    if isinstance(effect, RedisPut):
        return Stored(effect.request)
    _, epoch, counter, value, remaining_ms, fences, mark_epoch, mark_counter, places = reply
    copy = Copy(
        Version(int(epoch or 0), int(counter or 0)),
        value,
        int(remaining_ms or 0),
        _FENCES.decode(fences) if fences else (),
    )
    mark = None
    if mark_epoch and int(mark_epoch):
        version = Version(int(mark_epoch), int(mark_counter or 0))
        mark = Mark(version, _PLACES.decode(places or b"\x90"))
    return Loaded(effect.request, copy, mark)
