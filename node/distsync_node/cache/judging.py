"""What a change may do to a record, and which value of a key survived a crash: pure arithmetic."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from distsync_node.cache.events import Loaded
from distsync_node.cache.types import ABSENT, Change, Code, PeerId, Record, Refused, Version

MAX_FENCES_PER_KEY: Final = 16


def judge(record: Record, change: Change, *, lost: bool = False) -> Refused | None:
    """Return why the change may not be made to the record; None if it may.

    A deletion has a version too: a write under it is refused once the key was written or deleted
    again. ABSENT stands for any deletion, unless `exact`. `lost`: the record is not the newest, so
    that a token may be old although none that is newer is known.
    """
    if change.if_version is not None:
        is_absent = record.value is None and change.if_version == ABSENT and not change.exact
        if not is_absent and change.if_version != record.version:
            version = ABSENT if record.value is None else record.version
            return Refused(Code.VERSION_MISMATCH, version)
    fence = change.fence
    if fence is not None:
        newest = dict(record.fences).get(fence.lock, 0)
        if fence.token < newest:
            return Refused(Code.FENCED, newest=newest)
        if (fence.token > newest or lost) and not fence.verified:
            return Refused(Code.FENCE_UNVERIFIED, newest=newest)
        if newest == 0 and len(record.fences) >= MAX_FENCES_PER_KEY:
            return Refused(Code.TOO_MANY_FENCES)
    return None


def changed(record: Record, change: Change, version: Version, now_ms: int) -> Record:
    """Return the record after the change. Fences outlive values and deletions."""
    fences = record.fences
    if change.fence is not None:
        newest = {**dict(fences), change.fence.lock: change.fence.token}
        fences = tuple(sorted(newest.items()))
    expires_ms = now_ms + change.ttl_ms if change.ttl_ms and change.value is not None else 0
    return Record(version, change.value, expires_ms, fences)


class Offer(NamedTuple):
    """A copy that somebody has kept; `unmarked`: written without a mark in Redis."""

    record: Record
    unmarked: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """What a new home goes on with. `record` None: that of Redis. `lost`: nobody has the newest.

    `in_two`: two have it.
    """

    record: Record | None = None
    lost: bool = False
    in_two: bool = False


def choose_survivor(
    loaded: Loaded, offers: Collection[Offer], reporters: Collection[PeerId]
) -> Survivor:
    """Return which value of a key a new home goes on with (see the essay in `__init__.py`).

    `offers`: what others, or this node itself, kept of it; `reporters`: who said what they keep.
    """
    in_redis, mark = loaded.copy.version, loaded.mark
    if mark is None or mark.version <= in_redis:
        # Without a mark only an owner under local durability has anything newer that somebody heard
        # of. It counts: no home has gone on without it, for its keeper has reported it to each, or
        # has dropped it on missing one. Anything else was never made; or it was, and a deletion
        # after it, which Redis has forgotten since.
        best = _newest(offer.record for offer in offers if offer.unmarked)
        if best is not None and best.version > in_redis:
            return Survivor(record=best)
        return Survivor()
    best = _newest(offer.record for offer in offers)
    if best is not None and best.version >= mark.version:
        keepers = sum(offer.record.version == best.version for offer in offers)
        return Survivor(record=best, in_two=keepers > 1)
    if any(place in reporters for place in mark.places):
        # Each write under the mark is in both places before anybody hears of it, and a place keeps
        # it until Redis has it. One of them is here and has none: there was none.
        return Survivor()
    return Survivor(lost=True)


def _newest(records: Iterable[Record]) -> Record | None:
    return max(records, key=lambda record: record.version, default=None)
