"""One key at a node: what is held of it, and what is under way.

A line has at most one Ask under way, and calls of clients wait in it. Which states follow each
other is in `tables.py`; `HeldLines` alone takes a line from one to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from distsync_node.cache.messages import Wish
from distsync_node.cache.tables import LineState
from distsync_node.cache.types import LINE_OVERHEAD_BYTES, Change, OpId, PeerId, Record, Version


@dataclass(slots=True, kw_only=True)
class AskUnderWay:
    """An Ask that has not been answered; leases count from when it was sent first.

    `moved`: of a write whose key may have had another home since; what the answer grants is old.
    """

    number: int
    home: PeerId
    wish: Wish
    lease: int
    sent_ms: int
    moved: bool = False


class Doubt(NamedTuple):
    """A write that its home of before has made under this version, or never."""

    change: Change
    version: Version


@dataclass(slots=True, kw_only=True)
class Line:
    """One key at this node."""

    key: str
    home: PeerId | None
    state: LineState = LineState.INVALID
    record: Record | None = None
    grant: int = 0  # the number of the Ask that gave what is held
    serve_until_ms: int = 0  # 0 = it does not expire
    written_ms: int = 0  # local durability: when it was last written here, and
    dirty_since_ms: int = 0  # first, of what Redis has not
    block: tuple[int, int, int] = (0, 0, 0)  # epoch, next counter, end: versions of its owner
    ask: AskUnderWay | None = None
    writer: OpId | None = None  # whose change is at the home, or
    doubt: Doubt | None = None  # was at the one of before
    readers: list[OpId] = field(default_factory=list)
    late_readers: list[OpId] = field(default_factory=list)  # came after the fill was overtaken
    writers: list[tuple[OpId, Change]] = field(default_factory=list)  # a deque has 600 bytes

    @property
    def is_own(self) -> bool:
        """Whether its owner writes it by itself: its home gave it versions for that."""
        return self.block[2] > 0

    @property
    def has_calls(self) -> bool:
        """Whether a client waits."""
        return bool(self.readers or self.late_readers or self.writers or self.writer is not None)

    @property
    def size(self) -> int:
        """Its bytes in memory, nearly."""
        return LINE_OVERHEAD_BYTES if self.record is None else self.record.size + len(self.key)

    def join_readers(self) -> None:
        """Who came after the fill was overtaken waits for the next one, as the others do."""
        self.readers, self.late_readers = self.readers + self.late_readers, []
