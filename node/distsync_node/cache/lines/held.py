"""The lines held at a node, and the leases of homes under which they are held.

It guarantees:

- A line is read locally only in a state of `tables.READABLE`, while the node lease, the copy lease
  of its home and its time to live all last by the time of this very event.
- It changes only as the table allows, and has a record exactly in the states of `HAS_RECORD`.
- `modified`, `dirty_bytes` and `leaving_bytes` say what is in those states.
- A line that holds nothing and waits for nothing is forgotten.
"""

from __future__ import annotations

from collections import OrderedDict

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import HeldLease
from distsync_node.cache.kept import Kept, KeptCopies
from distsync_node.cache.lines.line import AskUnderWay, Line
from distsync_node.cache.lru import Lru
from distsync_node.cache.misses import Gone, Miss
from distsync_node.cache.tables import (
    DIRTY,
    HAS_RECORD,
    OWNED,
    READABLE,
    Input,
    LineState,
    next_state,
)
from distsync_node.cache.types import PeerId, Record
from distsync_node.errors import InvariantViolation


class HeldLines:
    """All lines of a node."""

    def __init__(self, context: Context, kept: KeptCopies) -> None:
        self._context = context
        self._kept = kept
        self._parked: dict[str, None] = {}  # calls wait and nothing is under way
        self.lru: Lru[Line] = Lru(context.options.max_bytes)
        self.modified: OrderedDict[str, None] = OrderedDict()  # lines in M, by their last write
        self.leases: dict[PeerId, HeldLease] = {}
        self.left: dict[PeerId, HeldLease] = {}  # of homes that have left the ring
        self.dirty_bytes = 0
        self.leaving_bytes = 0  # of lines that go once Redis has them
        self.evictions = 0  # lines that had to go for want of room
        self.snoops = 0  # lines that another node read, and
        self.invalidations = 0  # wrote
        self.gone = Gone(context.options.max_bytes)

    # --- Reads --------------------------------------------------------------------------------

    def hit(self, key: str) -> Record | None:
        """Return the record if it can be served at the time of this event."""
        line = self.lru.get(key)
        if line is None or not self.is_readable(line):
            return None
        self.lru.touch(key)
        return line.record

    def miss(self, key: str) -> Miss:
        """Return why a read of the key is no hit."""
        line = self.lru.get(key)
        if line is not None and line.ask is not None:
            return Miss.ON_ITS_WAY
        if line is None or line.record is None:
            return self.gone.take(key)
        if 0 < line.serve_until_ms <= self._context.now_ms:
            return Miss.EXPIRED
        return Miss.NO_LEASE

    def is_readable(self, line: Line) -> bool:
        """Whether it can be served at the time of this event."""
        return (
            line.state in READABLE
            and self.is_live(line)
            and not 0 < line.serve_until_ms <= self._context.now_ms
        )

    def is_live(self, line: Line) -> bool:
        """Whether both leases last: what is held may be used at the time of this event."""
        if line.home is None or not self._context.holds_node_lease():
            return False
        lease = self.leases.get(line.home)
        return lease is not None and lease.is_valid(self._context.now_ms)

    # --- Leases -------------------------------------------------------------------------------

    def has_lease(self, home: PeerId) -> bool:
        """Whether a lease of that home lasts."""
        lease = self.leases.get(home)
        return lease is not None and lease.is_valid(self._context.now_ms)

    def lease_of(self, home: PeerId) -> HeldLease | None:
        """Return the lease of a home, also of one that has left the ring."""
        return self.leases.get(home) or self.left.get(home)

    def is_under(self, lease: HeldLease, number: int) -> bool:
        """Whether the lease lasts and is the one of that number."""
        return lease.number == number and lease.is_valid(self._context.now_ms)

    def is_heard(self, ask: AskUnderWay) -> bool:
        """Whether who was asked can still say what became of it."""
        lease = self.lease_of(ask.home)
        return lease is not None and self.is_under(lease, ask.lease)

    # --- States -------------------------------------------------------------------------------

    def line(self, key: str) -> Line:
        """Return the line of a key; a new one if there is none."""
        line = self.lru.get(key)
        if line is None:
            line = Line(key=key, home=self._context.home_of(key))
            self.lru.put(key, line, line.size)
        return line

    def become(self, line: Line, what: Input, record: Record | None) -> None:
        """Take one step of the table, and hold that record from now on."""
        if line.state in DIRTY:
            self.dirty_bytes -= line.size
        if line.state is LineState.WRITING_BACK:
            self.leaving_bytes -= line.size
        if line.state is LineState.MODIFIED:
            del self.modified[line.key]
        line.state = next_state(line.state, what)
        line.record = record
        if line.state not in OWNED:
            line.block = (0, 0, 0)
        if (line.state in HAS_RECORD) != (record is not None):
            raise InvariantViolation(f"{line.key} is {line.state.value} with {record!r:.80}")
        if line.state in DIRTY:
            self.dirty_bytes += line.size
        if line.state is LineState.WRITING_BACK:
            self.leaving_bytes += line.size
        if line.state is LineState.MODIFIED:
            self.modified[line.key] = None
        if line.key in self.lru:
            self.lru.resize(line.key, line.size)

    def keep(self, line: Line) -> None:
        """Keep a dirty value for safety, beside the line."""
        if line.record is None:
            raise InvariantViolation(f"{line.key} is dirty and empty")
        kept = Kept(
            record=line.record,
            since_ms=self._context.now_ms,
            grant=line.grant,
            owner_of=line.home if line.is_own else None,
            unmarked=line.is_own,
        )
        self._kept.keep(line.key, kept)

    def first_modified(self) -> Line:
        """Return the line in M that was written least recently."""
        key = next(iter(self.modified))
        line = self.lru.get(key)
        if line is None:
            raise InvariantViolation(f"{key} is dirty and not here")
        return line

    def dirty_since_ms(self, now_ms: int) -> int:
        """Return since when an owner under local durability has had a value that Redis has not."""
        lines = (line for _, line in self.lru.items() if line.state in DIRTY)
        return min((one.dirty_since_ms for one in lines if one.dirty_since_ms), default=now_ms)

    # --- Lines that wait ----------------------------------------------------------------------

    def park(self, line: Line) -> None:
        """Its calls wait for a lease, or for another ring."""
        self._parked[line.key] = None

    def unpark(self, line: Line) -> None:
        """It waits no longer."""
        self._parked.pop(line.key, None)

    @property
    def parked(self) -> list[str]:
        """The keys of lines whose calls wait, in the order in which they began to."""
        return list(self._parked)

    def take_parked(self) -> list[str]:
        """Return these keys, and forget that they wait."""
        parked, self._parked = list(self._parked), {}
        return parked

    def settle(self, line: Line) -> None:
        """Forget a line that holds nothing and waits for nothing."""
        if line.has_calls:
            return
        self._parked.pop(line.key, None)
        if line.ask is None and line.record is None:
            self.lru.remove(line.key)
