"""The lines of a node in the order of their use, bounded in bytes: an `OrderedDict`.

It counts and orders; what may be evicted, and how, the caller decides: a line that only this node
has (M, or a change on its way) must be written back first, so it is passed over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Lru(Generic[Item]):
    """Least recently used first."""

    __slots__ = ("_items", "_sizes", "bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._items: OrderedDict[str, Item] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def get(self, key: str) -> Item | None:
        """Return an item; its place in the order stays."""
        return self._items.get(key)

    def items(self) -> Iterator[tuple[str, Item]]:
        """Yield keys and items, least recently used first."""
        return iter(self._items.items())

    def touch(self, key: str) -> None:
        """It was used now."""
        self._items.move_to_end(key)

    def put(self, key: str, item: Item, size: int) -> None:
        """Keep an item of so many bytes; a new one counts as used now."""
        self._items[key] = item
        self.bytes += size - self._sizes.get(key, 0)
        self._sizes[key] = size

    def resize(self, key: str, size: int) -> None:
        """The item has so many bytes now."""
        self.bytes += size - self._sizes[key]
        self._sizes[key] = size

    def remove(self, key: str) -> None:
        """Forget an item, if it is there."""
        if self._items.pop(key, None) is not None:
            self.bytes -= self._sizes.pop(key)

    def over_limit(
        self, may_go: Callable[[Item], bool], leaving: int = 0, beside: int = 0
    ) -> list[str]:
        """Return the oldest keys that may go, as many as it takes to be within the limit.

        `leaving`: bytes of items that are on their way out already; `beside`: bytes elsewhere, for
        which up to half of the limit is left.
        """
        excess = self.bytes - leaving - self.max_bytes + min(beside, self.max_bytes // 2)
        if excess <= 0:
            return []
        chosen: list[str] = []
        for key, item in self._items.items():
            if excess <= 0:
                break
            if may_go(item):
                chosen.append(key)
                excess -= self._sizes[key]
        return chosen

    def counted_bytes(self) -> int:
        """Return the sum of all sizes, for checks."""
        return sum(self._sizes.values())
