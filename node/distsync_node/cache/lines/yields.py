"""What homes ask a node for: to yield a line, and to keep copies for safety.

It guarantees:

- A yield is of the grant that it names, and of no later one. A grant that has not arrived is
  refused when it does; if it was a write, it is taken as made.
- A dirty value that is yielded is kept until Redis has it, and an answer that was lost is given
  again from there.
- Who is asked for anything that it does not hold says so.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.kept import Kept, KeptCopies
from distsync_node.cache.lines.asks import Asks
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import AskUnderWay, Line
from distsync_node.cache.lines.writes import Writes
from distsync_node.cache.messages import Cleaned, Invalidate, Mirror, Mirrored, Snoop, Yielded
from distsync_node.cache.misses import Miss
from distsync_node.cache.tables import (
    COMMITTING,
    DIRTY,
    HAS_RECORD,
    LINE,
    OWNED,
    Input,
    next_state,
)
from distsync_node.cache.types import ABSENT, Copy, PeerId, received
from distsync_node.errors import InvariantViolation


class Yields:
    """Does as homes ask."""

    def __init__(
        self, context: Context, kept: KeptCopies, held: HeldLines, asks: Asks, writes: Writes
    ) -> None:
        self._context = context
        self._kept = kept
        self._held = held
        self._asks = asks
        self._writes = writes

    # --- Lines --------------------------------------------------------------------------------

    def yield_line(self, source: PeerId, message: Snoop | Invalidate) -> Line | None:
        """Another node reads or writes. Return the line, if there is one."""
        line = self._held.lru.get(message.key)
        lease = self._held.leases.get(source)
        copy = None
        if (
            line is not None
            and line.home == source
            and lease is not None
            and self._held.is_under(lease, message.lease)
        ):
            copy = self._yield_held(line, message)
        self._yielded(source, message, copy)
        return line

    def _yield_held(self, line: Line, message: Snoop | Invalidate) -> Copy | None:
        held = self._held
        snoop = isinstance(message, Snoop)
        ask = line.ask
        if ask is not None and ask.number == message.grant:
            return self._overtaken(line, ask, message)
        what = Input.SNOOP if snoop else Input.INVALIDATE
        if line.grant != message.grant or line.record is None or what not in LINE[line.state]:
            return None
        record = line.record
        expired = 0 < line.serve_until_ms <= self._context.now_ms
        if line.state in DIRTY:
            held.keep(line)
        if not snoop and not expired:
            held.invalidations += 1
        elif snoop and line.state in OWNED:  # else it is asked again
            held.snoops += 1
        keeps = next_state(line.state, what) in HAS_RECORD
        held.become(line, what, record if keeps else None)
        if not keeps:
            held.gone.note(line.key, Miss.EXPIRED if expired else Miss.INVALIDATED)
        return record.copy(self._context.now_ms)

    def _overtaken(self, line: Line, ask: AskUnderWay, message: Snoop | Invalidate) -> Copy | None:
        """The home speaks of a grant that has not arrived here."""
        held = self._held
        snoop = isinstance(message, Snoop)
        what = Input.SNOOP_OVERTAKES if snoop else Input.INVALIDATE_OVERTAKES
        held.gone.note(line.key, Miss.INVALIDATED)
        if next_state(line.state, what) is not line.state:  # else it is asked again
            held.snoops += snoop
            held.invalidations += not snoop
        if line.state not in COMMITTING:
            held.become(line, what, None)
            return None
        if message.committed is None:
            raise InvariantViolation(f"the home of {line.key} does not know what it committed")
        self._asks.end(line)
        record = self._writes.take_commit(line, ask, message.committed, what)
        now_ms = self._context.now_ms
        if message.committed.dirty:
            self._kept.keep(line.key, Kept(record=record, since_ms=now_ms))
        return record.copy(now_ms) if line.record is not None else None

    def _yielded(self, source: PeerId, message: Snoop | Invalidate, copy: Copy | None) -> None:
        kept = self._kept.get(message.key)
        version = ABSENT
        if kept is not None:
            version = kept.record.version
            # An answer that was lost is given again.
            if copy is None and kept.owner_of == source and kept.grant == message.grant:
                copy = kept.record.copy(self._context.now_ms)
        self._context.send(source, Yielded(message.lease, message.txn, message.key, version, copy))

    # --- Copies kept for safety ---------------------------------------------------------------

    def mirror(self, source: PeerId, message: Mirror) -> None:
        """Keep a copy for another home."""
        if self._context.draining:
            self._context.send(source, Mirrored(message.txn, message.key, False))
            return
        now_ms = self._context.now_ms
        record = received(message.copy, now_ms)
        self._kept.keep(message.key, Kept(record=record, since_ms=now_ms))
        self._context.send(source, Mirrored(message.txn, message.key))

    def cleaned(self, message: Cleaned) -> None:
        """Redis has that version."""
        self._kept.clean(message.key, message.version)
        line = self._held.lru.get(message.key)
        if line is None or line.record is None or line.record.version != message.version:
            return
        if Input.CLEANED in LINE[line.state]:
            self._held.become(line, Input.CLEANED, line.record)
