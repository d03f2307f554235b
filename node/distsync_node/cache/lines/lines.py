"""The lines at a node: calls of clients, and what is asked of homes for them.

It guarantees:

- A call is served here if the line can serve it at the time of this event; else the home is asked,
  with one Ask a line at a time.
- Whoever waits goes on as soon as what it waits for has come, and is told if that cannot come.
- What was not sent to a home when a client gives up is not done; of what was sent nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable

from distsync_node.cache.context import Context
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.lines.asks import Asks, TimerName
from distsync_node.cache.lines.clients import Clients
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.leases import Leases
from distsync_node.cache.lines.line import Line
from distsync_node.cache.lines.local import LocalWrites
from distsync_node.cache.lines.replies import Replies
from distsync_node.cache.lines.write_backs import WriteBacks
from distsync_node.cache.lines.writes import Writes
from distsync_node.cache.lines.yields import Yields
from distsync_node.cache.messages import (
    AskOwnership,
    AskRead,
    AskWrite,
    Invalidate,
    Renewed,
    Reply,
    Snoop,
)
from distsync_node.cache.tables import (
    DIRTY,
    HAS_RECORD,
    LINE,
    OWNED,
    READABLE,
    Input,
    LineState,
    next_state,
)
from distsync_node.cache.timers import Timers
from distsync_node.cache.types import Change, Code, Durability, OpId, PeerId, Refused


class Lines:
    """The holder's side of the protocol at one node."""

    def __init__(self, context: Context, kept: KeptCopies, homed: Callable[[], int]) -> None:
        """`homed` tells how many bytes the home of this node holds, as the second place of them."""
        self._context = context
        self._options = context.options
        self._timers: Timers[TimerName] = Timers()
        self.held = held = HeldLines(context, kept)
        self._clients = clients = Clients(context)
        self._asks = asks = Asks(context, held, self._timers)
        self._writes = writes = Writes(context, held, clients)
        self.write_backs = WriteBacks(context, kept, homed, held, asks, self._timers)
        self._local = LocalWrites(context, held, clients, self.write_backs)
        self._replies = Replies(context, held, clients, asks, writes, self.write_backs)
        self.yields = Yields(context, kept, held, asks, writes)
        self.leases = Leases(context, kept, held, asks, writes, self._timers)

    # --- Calls of clients ---------------------------------------------------------------------

    def read(self, op: OpId, key: str) -> None:
        """Serve a read, now or when the home has answered."""
        record = self.held.hit(key)
        if record is not None:
            self._clients.answer(op, self._clients.found(record, hit=True))
            return
        line = self.held.line(key)
        self._clients.wait(op, key)
        if line.state is LineState.FILLING_INVALIDATED:
            line.late_readers.append(op)
        else:
            line.readers.append(op)
        self._drive(line)

    def write(self, op: OpId, key: str, change: Change) -> None:
        """Serve a write, now or when the home has answered."""
        dirty = self.held.dirty_bytes + self._clients.waiting_bytes + change.size
        if dirty > self._options.max_dirty_bytes:
            self.write_backs.evict_oldest(change.size)
            if change.value is not None:
                self._clients.answer(op, Refused(Code.LIMIT))
                return
        line = self.held.line(key)
        self._clients.wait_to_write(op, key, change.size)
        line.writers.append((op, change))
        self._drive(line)

    def gone(self, op: OpId) -> None:
        """The client waits no longer. What was not sent is not done."""
        line = self.held.lru.get(self._clients.key_of(op))
        if line is None:
            return
        if line.writer == op and line.doubt is None:
            self._give_up(line)
            self._drive(line)
            return
        refusal = Refused(Code.UNAVAILABLE)
        if line.writer == op:
            refusal, line.writer, line.doubt = Refused(Code.UNKNOWN), None, None
        for waiting in (line.readers, line.late_readers):
            if op in waiting:
                waiting.remove(op)
        line.writers = [one for one in line.writers if one[0] != op]
        self._clients.answer(op, refusal)
        if not line.has_calls and Input.GIVE_UP in LINE[line.state]:
            self._give_up(line)
        self.held.settle(line)

    def _give_up(self, line: Line) -> None:
        """Nobody waits for the answer: whatever comes is refused."""
        if line.state in DIRTY:
            self.held.keep(line)
        keeps = next_state(line.state, Input.GIVE_UP) in HAS_RECORD
        self._asks.end(line)
        self.held.become(line, Input.GIVE_UP, line.record if keeps else None)
        self._writes.answer(line, Refused(Code.UNKNOWN))
        line.join_readers()

    # --- Those who wait -----------------------------------------------------------------------

    def _drive(self, line: Line) -> None:
        """Go on with whoever waits in the line, as far as it goes now."""
        held = self.held
        if line.is_own and line.writers and held.is_live(line):
            self._local.write(line)
        if line.readers and held.is_readable(line) and line.record is not None:
            self._clients.answer_readers(line, self._clients.found(line.record, hit=False))
        if line.ask is not None:
            return
        if not line.has_calls:
            held.settle(line)
        elif line.home is None or not held.has_lease(line.home):
            held.park(line)
        elif line.writers and line.doubt is None:
            self._ask_to_write(line)
        else:
            self._ask_to_read(line)

    def _ask_to_write(self, line: Line) -> None:
        if line.is_own:
            self.held.park(line)  # until the node lease lasts again
        elif self._is_local(line.key) and line.state not in OWNED:
            self._asks.ask(line, Input.ASK_OWNERSHIP, AskOwnership())
        else:
            # Also if this node's durability is local, and that of the home is not.
            line.writer, change = line.writers.pop(0)
            self._asks.ask(line, Input.ASK_WRITE, AskWrite(change))

    def _ask_to_read(self, line: Line) -> None:
        if line.state in READABLE and not self._context.holds_node_lease():
            self.held.park(line)
            return
        if line.state in DIRTY:
            # Its time to live is over: that is for the home to say, and for its only owner if
            # nobody else knows the value.
            if line.is_own:
                self._local.expire(line)
                if line.readers and line.ask is None:
                    self._drive(line)
                return
            self.held.keep(line)
            self.held.become(line, Input.DROP, None)
        self._asks.ask(line, Input.ASK_READ, AskRead())

    def _is_local(self, key: str) -> bool:
        return self._options.durability_of(key) is Durability.LOCAL

    def drive_parked(self) -> None:
        """A lease lasts that did not: go on with those who wait."""
        for key in self.held.take_parked():
            line = self.held.lru.get(key)
            if line is not None:
                self._drive(line)

    # --- From homes ---------------------------------------------------------------------------

    def reply(self, source: PeerId, message: Reply) -> None:
        """The home has answered an Ask."""
        line = self._replies.reply(source, message)
        if line is not None:
            self._drive(line)

    def yield_line(self, source: PeerId, message: Snoop | Invalidate) -> None:
        """Another node reads or writes."""
        line = self.yields.yield_line(source, message)
        if line is not None:
            self._drive(line)

    def renewed(self, source: PeerId, message: Renewed) -> None:
        """The home has answered when it was asked for a lease."""
        if self.leases.renewed(source, message):
            self.drive_parked()

    # --- The ring -----------------------------------------------------------------------------

    def adopt(self, *, continuous: bool) -> None:
        """A new ring: drop what has moved. `continuous`: nobody can have been home in between."""
        self.leases.adopt(continuous=continuous)
        for line in [line for _, line in self.held.lru.items()]:
            if line.ask is not None:
                self._asks.send(line, line.ask)
            else:
                self._drive(line)

    def retire(self) -> None:
        """This node leaves: what still waits was not sent, and is for others to do."""
        for key in self.held.parked:
            line = self.held.lru.get(key)
            if line is None:
                continue
            for op in [*line.readers, *line.late_readers, *(op for op, _ in line.writers)]:
                self._clients.answer(op, Refused(Code.UNAVAILABLE))
            line.readers, line.late_readers, line.writers = [], [], []
            self.held.settle(line)

    @property
    def is_clean(self) -> bool:
        """Whether no value is here that Redis has not, none is on its way, and none in doubt."""
        if self.held.modified or len(self._asks):
            return False
        parked = (self.held.lru.get(key) for key in self.held.parked)
        return all(line is None or line.doubt is None for line in parked)

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        for kind, name in self._timers.due(self._context.now_ms):
            if kind == "renew":
                self.leases.renew(PeerId(str(name)))
            elif kind == "idle":
                self.write_backs.write_back_idle(str(name))
            elif isinstance(name, int):
                line = self._asks.line_of(name)
                if line is not None and line.ask is not None:
                    self._asks.send(line, line.ask)

    def next_tick_ms(self) -> int | None:
        """Return when something is due next."""
        times = (self.leases.next_end_ms(), self._timers.next_ms())
        return min((at_ms for at_ms in times if at_ms is not None), default=None)
