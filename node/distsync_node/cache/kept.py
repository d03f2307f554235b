"""Copies that a node keeps for safety and does not serve.

They are what is left of a Modified line that was invalidated, snooped, or whose lease or home is
gone; and mirrors, which another home asked this node to keep. Each goes when Redis has its version
(`Cleaned`). On a new epoch they are reported, with values, to whoever is the key's home then. A
copy that stays for too long is reported again, beside the epoch, in case its `Cleaned` was lost.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, takewhile

from distsync_node.cache.types import PeerId, Record, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One copy; `owner_of`: the home that knows this node as its only place (local durability).

    `unmarked`: Redis has no mark for it, for it was written under local durability.
    """

    record: Record
    since_ms: int
    grant: int = 0
    owner_of: PeerId | None = None
    unmarked: bool = False


class KeptCopies:
    """The newest copy of each key that is to be kept, by `since_ms`."""

    __slots__ = ("_copies", "bytes")

    def __init__(self) -> None:
        self._copies: OrderedDict[str, Kept] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._copies)

    def items(self) -> Iterator[tuple[str, Kept]]:
        """Yield keys and copies."""
        return iter(self._copies.items())

    def get(self, key: str) -> Kept | None:
        """Return the copy of a key."""
        return self._copies.get(key)

    def version(self, key: str) -> Version | None:
        """Return the version of the copy of a key."""
        kept = self._copies.get(key)
        return None if kept is None else kept.record.version

    def keep(self, key: str, kept: Kept) -> None:
        """Keep a copy unless there is a newer one."""
        known = self._copies.get(key)
        if known is not None:
            if known.record.version > kept.record.version:
                return
            self.bytes -= known.record.size
        self._put_last(key, kept)
        self.bytes += kept.record.size

    def _put_last(self, key: str, kept: Kept) -> None:
        self._copies[key] = kept
        self._copies.move_to_end(key)

    def not_since(self, before_ms: int, most: int) -> list[tuple[str, Kept]]:
        """Return the copies that were kept, and reported, last by then: the first, so many."""
        first = islice(self._copies.items(), most)
        return list(takewhile(lambda item: item[1].since_ms <= before_ms, first))

    def refresh(self, key: str, now_ms: int) -> None:
        """It was reported just now."""
        self._put_last(key, replace(self._copies[key], since_ms=now_ms))

    def clean(self, key: str, version: Version) -> None:
        """Redis has this version."""
        known = self._copies.get(key)
        if known is not None and known.record.version <= version:
            self.drop(key)

    def drop(self, key: str) -> None:
        """Keep it no longer."""
        known = self._copies.pop(key, None)
        if known is not None:
            self.bytes -= known.record.size
