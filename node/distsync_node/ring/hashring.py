"""Which node owns a name: a consistent-hash ring on md5 with weighted virtual nodes.

Guarantees:

- The owner of a key depends on the nodes and their weights only, never on the order of changes: a
  ring is immutable and its points are computed from scratch.
- Adding one of N equal nodes moves about 1/N of the keys, all of them to it; removing one moves
  only its own keys. Raising or lowering a weight moves keys only to or from that node.
- Virtual nodes are named `node:index`; the separator keeps `node1` + `11` from meeting `node11` +
  `1`. Two points that are equal all the same are told apart by the node's name.

The hash places keys, it protects nothing, hence md5 with `usedforsecurity=False`. Source: Karger et
al., "Consistent Hashing and Random Trees" (1997).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Mapping

DEFAULT_VIRTUAL_NODES = 160
MAX_WEIGHT = 10.0
_POINT_BYTES = 8
RING_SIZE = 1 << (8 * _POINT_BYTES)


def key_point(key: str) -> int:
    """Return the place of a key (or of a virtual node's name) on the ring, below 2^64."""
    digest = hashlib.md5(key.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:_POINT_BYTES], "big")


class HashRing:
    """An immutable ring. `weights` maps each node to its share; 0 owns nothing."""

    __slots__ = ("_nodes", "_points", "_virtual_nodes", "_weights")

    def __init__(
        self, weights: Mapping[str, float], virtual_nodes: int = DEFAULT_VIRTUAL_NODES
    ) -> None:
        if virtual_nodes < 1:
            raise ValueError(f"virtual_nodes must be at least 1, not {virtual_nodes}")
        for node, weight in weights.items():
            if not 0 <= weight <= MAX_WEIGHT:
                raise ValueError(f"the weight of {node} must be 0 to {MAX_WEIGHT:g}, not {weight}")
        self._weights = dict(sorted(weights.items()))
        self._virtual_nodes = virtual_nodes
        placed = sorted(
            (key_point(f"{node}:{index}"), node)
            for node, weight in self._weights.items()
            for index in range(round(virtual_nodes * weight))
        )
        self._points = [point for point, _ in placed]
        self._nodes = [node for _, node in placed]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Every node, sorted, those of weight 0 included."""
        return tuple(self._weights)

    @property
    def virtual_nodes(self) -> int:
        """Virtual nodes of a node of weight 1."""
        return self._virtual_nodes

    def owner(self, key: str) -> str | None:
        """Return the node of the first virtual node clockwise of `key`; None on an empty ring."""
        if not self._points:
            return None
        position = bisect_left(self._points, key_point(key))
        return self._nodes[position % len(self._nodes)]

    def owners(self, key: str) -> Iterator[str]:
        """Yield each node once, the owner first, then clockwise: who would own `key` next."""
        start = bisect_left(self._points, key_point(key))
        seen: set[str] = set()
        for step in range(len(self._points)):
            node = self._nodes[(start + step) % len(self._nodes)]
            if node not in seen:
                seen.add(node)
                yield node

    def shares(self) -> dict[str, float]:
        """Return the part of the ring each node owns; they add up to 1 unless it is empty."""
        shares = dict.fromkeys(self._weights, 0.0)
        for position, point in enumerate(self._points):
            before = self._points[position - 1] if position else self._points[-1] - RING_SIZE
            shares[self._nodes[position]] += (point - before) / RING_SIZE
        return shares
