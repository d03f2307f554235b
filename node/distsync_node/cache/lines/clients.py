"""Calls of clients that wait at a node.

It guarantees that a call is known from when it begins to wait until it is answered, and that
`waiting_bytes` is the size of the changes of all such calls.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.effects import Answer
from distsync_node.cache.lines.line import Line
from distsync_node.cache.types import Found, Missing, OpId, Outcome, Record


class Clients:
    """Who waits, and for which key."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._keys: dict[OpId, str] = {}
        self._sizes: dict[OpId, int] = {}  # of changes
        self.waiting_bytes = 0

    def wait(self, op: OpId, key: str) -> None:
        """A call waits from now on."""
        self._keys[op] = key

    def wait_to_write(self, op: OpId, key: str, size: int) -> None:
        """The same, with a change of so many bytes."""
        self._keys[op] = key
        self._sizes[op] = size
        self.waiting_bytes += size

    def key_of(self, op: OpId) -> str:
        """Return the key for which a call waits; nothing if it does not."""
        return self._keys.get(op, "")

    def answer(self, op: OpId, outcome: Outcome) -> None:
        """Tell a client."""
        self._keys.pop(op, None)
        self.waiting_bytes -= self._sizes.pop(op, 0)
        self._context.effects.append(Answer(op, outcome))

    def answer_readers(self, line: Line, outcome: Outcome) -> None:
        """Tell all who wait to read the line, but those who came too late."""
        readers, line.readers = line.readers, []
        for op in readers:
            self.answer(op, outcome)

    def found(self, record: Record, *, hit: bool) -> Outcome:
        """Return what a reader is told of a record."""
        if record.value is None:
            return Missing(record.version, hit)
        now_ms = self._context.now_ms
        remaining_ms = max(1, record.expires_ms - now_ms) if record.expires_ms else 0
        return Found(record.version, record.value, remaining_ms, hit)
