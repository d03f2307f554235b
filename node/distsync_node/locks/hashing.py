"""A hash of the state that costs no more than what changed.

The hash is the sum, modulo 2^64, of a 64-bit hash of every item (`records.py`) and of the
counters. It depends on the items alone: not on the order in which they came, on when the hash was
asked for, on a restore in between, or on PYTHONHASHSEED.

Items are frozen, so a change is "old item out, new item in". Both are only noted; they are
encoded and hashed when the value is asked for, and an item that came and went in between is never
hashed. The notes are bounded: `keep_bounded`, called after each command, works them off when there
are more than `MAX_PENDING`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import msgspec

from distsync_node.locks.records import Counters, Item

MAX_PENDING = 4_096
_MASK = 2**64 - 1
_encode = msgspec.msgpack.Encoder().encode


def item_hash(item: Item | Counters) -> int:
    """Return the 64-bit hash of one item."""
    return int.from_bytes(blake2b(_encode(item), digest_size=8).digest(), "little")


class StateHash:
    """The running sum over the items.

    `add` notes that an item is part of the state from now on, `remove` that it no longer is.
    """

    __slots__ = ("_added", "_removed", "_sum", "add", "remove")

    def __init__(self) -> None:
        self._sum = 0
        self._added: list[Item] = []
        self._removed: list[Item] = []
        # Five notes a command: nothing but an append each.
        self.add: Callable[[Item], None] = self._added.append
        self.remove: Callable[[Item], None] = self._removed.append

    def keep_bounded(self) -> None:
        """Work off the notes if there are many."""
        if len(self._added) > MAX_PENDING or len(self._removed) > MAX_PENDING:
            self._work_off()

    def value(self, counters: Counters) -> int:
        """Return the hash of all items and the counters."""
        self._work_off()
        return (self._sum + item_hash(counters)) & _MASK

    def _work_off(self) -> None:
        # The lists keep the noted items alive, so no two of them share an id.
        came = {id(item): item for item in self._added}
        total = self._sum
        for item in self._removed:
            if came.pop(id(item), None) is None:
                total -= item_hash(item)
        for item in came.values():
            total += item_hash(item)
        self._sum = total & _MASK
        self._added.clear()
        self._removed.clear()
