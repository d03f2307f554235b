"""Writes in E and M under local durability: nothing leaves this node.

It guarantees:

- Each has a version of its own from the block that the home gave with the ownership, in order;
  when the block is used up the home is asked for the next.
- What has expired is deleted before anything else is written, for nobody else knows.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.judging import changed, judge
from distsync_node.cache.lines.clients import Clients
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import Line
from distsync_node.cache.lines.write_backs import WriteBacks
from distsync_node.cache.tables import DIRTY, LINE, Input, LineState
from distsync_node.cache.types import Missing, Record, Version, Written


class LocalWrites:
    """Writes lines that are their owner's own (`Line.is_own`), while both leases last."""

    def __init__(
        self, context: Context, held: HeldLines, clients: Clients, write_backs: WriteBacks
    ) -> None:
        self._context = context
        self._held = held
        self._clients = clients
        self._write_backs = write_backs

    def write(self, line: Line) -> None:
        """Serve those who wait to write."""
        while line.writers and line.record is not None and Input.WRITE in LINE[line.state]:
            epoch, counter, end = line.block
            if counter >= end:
                self._renew_block(line)
                return
            now_ms = self._context.now_ms
            if line.record.is_expired(now_ms):
                self.expire(line)
                continue
            op, change = line.writers.pop(0)
            refusal = judge(line.record, change)
            if refusal is None:
                version = Version(epoch, counter)
                self._commit(line, changed(line.record, change, version, now_ms))
                self._clients.answer(op, Written(version))
            else:
                self._clients.answer(op, refusal)

    def expire(self, line: Line) -> None:
        """The owner is the only one who knows: it deletes."""
        if line.record is None or line.block[1] >= line.block[2]:
            self._renew_block(line)
            return
        version = Version(line.block[0], line.block[1])
        self._commit(line, Record(version, None, 0, line.record.fences))
        if line.readers and self._held.is_readable(line):
            self._clients.answer_readers(line, Missing(version))

    def _commit(self, line: Line, record: Record) -> None:
        epoch, counter, end = line.block
        line.block = (epoch, counter + 1, end)
        line.serve_until_ms = record.expires_ms
        line.written_ms = self._context.now_ms
        if line.state not in DIRTY:
            line.dirty_since_ms = self._context.now_ms
        self._held.become(line, Input.WRITE, record)
        self._write_backs.arm_idle(line)
        self._held.lru.touch(line.key)

    def _renew_block(self, line: Line) -> None:
        """All versions are used: write back, and ask for the ownership again."""
        if line.state is LineState.MODIFIED:
            self._write_backs.begin(line, stays=False)
        elif line.state is LineState.EXCLUSIVE:
            self._held.become(line, Input.DROP, None)
