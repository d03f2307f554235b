"""The lines at a node: the holder's side of the protocol (the essay is in `__init__.py`).

A line has at most one Ask under way, and calls of clients wait in it. It is read locally only in a
state of `tables.READABLE`, while the node lease, the copy lease of its home and its time to live
all last by the time of this very event.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias, assert_never

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import HeldLease
from distsync_node.cache.effects import Answer, LineDropped
from distsync_node.cache.judging import changed, judge
from distsync_node.cache.kept import Kept, KeptCopies
from distsync_node.cache.lru import Lru
from distsync_node.cache.messages import (
    Ask,
    AskOwnership,
    AskRead,
    AskWrite,
    AskWriteBack,
    Cleaned,
    Committed,
    Denied,
    Dropped,
    GivenUp,
    Granted,
    Invalidate,
    Mirror,
    Mirrored,
    Renew,
    Renewed,
    Reply,
    Snoop,
    Wish,
    WrittenBack,
    Yielded,
)
from distsync_node.cache.misses import Gone, Miss
from distsync_node.cache.tables import (
    COMMITTING,
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
from distsync_node.cache.types import (
    ABSENT,
    LINE_OVERHEAD_BYTES,
    NOTHING,
    Change,
    Code,
    Copy,
    Durability,
    Found,
    Missing,
    OpId,
    Outcome,
    PeerId,
    Record,
    Refused,
    Version,
    Written,
    received,
)
from distsync_node.errors import InvariantViolation

TimerName: TypeAlias = tuple[str, str | int]


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


class Lines:
    """All lines of a node."""

    def __init__(self, context: Context, kept: KeptCopies, homed: Callable[[], int]) -> None:
        """`homed` tells how many bytes the home of this node holds, as the second place of them."""
        self._context = context
        self._homed = homed
        self._options = context.options
        self._kept = kept
        self._last_number = 0
        self._asks: dict[int, str] = {}  # number -> key, in the order of numbers
        self._calls: dict[OpId, str] = {}
        self._sizes: dict[OpId, int] = {}  # of changes that wait
        self._waiting_bytes = 0
        self._parked: dict[str, None] = {}  # calls wait and nothing is under way
        self._leaving_bytes = 0
        self.modified: OrderedDict[str, None] = OrderedDict()  # lines in M, by their last write
        self.lru: Lru[Line] = Lru(context.options.max_bytes)
        self.leases: dict[PeerId, HeldLease] = {}
        self.left: dict[PeerId, HeldLease] = {}  # of homes that have left the ring
        self.timers: Timers[TimerName] = Timers()
        self.dirty_bytes = 0
        self.evictions = 0  # lines that had to go for want of room
        self.snoops = 0  # lines that another node read, and
        self.invalidations = 0  # wrote
        self._gone = Gone(context.options.max_bytes)

    # --- Calls of clients ---------------------------------------------------------------------

    def hit(self, key: str) -> Record | None:
        """Return the record if it can be served at the time of this event."""
        line = self.lru.get(key)
        if line is None or not self._is_readable(line):
            return None
        self.lru.touch(key)
        return line.record

    def miss(self, key: str) -> Miss:
        """Return why a read of the key is no hit."""
        line = self.lru.get(key)
        if line is not None and line.ask is not None:
            return Miss.ON_ITS_WAY
        if line is None or line.record is None:
            return self._gone.take(key)
        if 0 < line.serve_until_ms <= self._now:
            return Miss.EXPIRED
        return Miss.NO_LEASE

    def read(self, op: OpId, key: str) -> None:
        """Serve a read, now or when the home has answered."""
        record = self.hit(key)
        if record is not None:
            self._answer(op, self._found(record, hit=True))
            return
        line = self._line(key)
        self._calls[op] = key
        if line.state is LineState.FILLING_INVALIDATED:
            line.late_readers.append(op)
        else:
            line.readers.append(op)
        self._drive(line)

    def write(self, op: OpId, key: str, change: Change) -> None:
        """Serve a write, now or when the home has answered."""
        dirty = self.dirty_bytes + self._waiting_bytes + change.size
        if dirty > self._options.max_dirty_bytes:
            self._write_back_oldest(change.size)
            if change.value is not None:
                self._answer(op, Refused(Code.LIMIT))
                return
        line = self._line(key)
        self._calls[op] = key
        self._sizes[op] = change.size
        self._waiting_bytes += change.size
        line.writers.append((op, change))
        self._drive(line)

    def gone(self, op: OpId) -> None:
        """The client waits no longer. What was not sent is not done."""
        line = self.lru.get(self._calls.get(op, ""))
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
        self._answer(op, refusal)
        if not line.has_calls and Input.GIVE_UP in LINE[line.state]:
            self._give_up(line)
        self._settle(line)

    def _line(self, key: str) -> Line:
        line = self.lru.get(key)
        if line is None:
            line = Line(key=key, home=self._context.home_of(key))
            self.lru.put(key, line, line.size)
        return line

    def _is_readable(self, line: Line) -> bool:
        return (
            line.state in READABLE
            and self._is_live(line)
            and not 0 < line.serve_until_ms <= self._context.now_ms
        )

    def _is_live(self, line: Line) -> bool:
        """Whether both leases last: what is held may be used at the time of this event."""
        if line.home is None or not self._context.holds_node_lease():
            return False
        lease = self.leases.get(line.home)
        return lease is not None and lease.is_valid(self._context.now_ms)

    def _drive(self, line: Line) -> None:
        """Go on with whoever waits in the line, as far as it goes now."""
        if line.is_own and line.writers and self._is_live(line):
            self._write_locally(line)
        if line.readers and self._is_readable(line) and line.record is not None:
            self._serve_readers(line, self._found(line.record, hit=False))
        if line.ask is not None:
            return
        if not line.has_calls:
            self._settle(line)
        elif line.home is None or not self._has_lease(line.home):
            self._parked[line.key] = None
        elif line.writers and line.doubt is None:
            self._ask_to_write(line)
        else:
            self._ask_to_read(line)

    def _ask_to_write(self, line: Line) -> None:
        if line.is_own:
            self._parked[line.key] = None  # until the node lease lasts again
        elif self._is_local(line.key) and line.state not in OWNED:
            self._ask(line, Input.ASK_OWNERSHIP, AskOwnership())
        else:
            # Also if this node's durability is local, and that of the home is not.
            line.writer, change = line.writers.pop(0)
            self._ask(line, Input.ASK_WRITE, AskWrite(change))

    def _ask_to_read(self, line: Line) -> None:
        if line.state in READABLE and not self._context.holds_node_lease():
            self._parked[line.key] = None
            return
        if line.state in DIRTY:
            # Its time to live is over: that is for the home to say, and for its only owner if
            # nobody else knows the value.
            if line.is_own:
                self._expire_locally(line)
                if line.readers and line.ask is None:
                    self._drive(line)
                return
            self._keep(line)
            self._become(line, Input.DROP, None)
        self._ask(line, Input.ASK_READ, AskRead())

    def _settle(self, line: Line) -> None:
        """Forget a line that holds nothing and waits for nothing."""
        if line.has_calls:
            return
        self._parked.pop(line.key, None)
        if line.ask is None and line.record is None:
            self.lru.remove(line.key)

    # --- Local durability ---------------------------------------------------------------------

    def _write_locally(self, line: Line) -> None:
        """PrWr in E or M: nothing leaves this node."""
        while line.writers and line.record is not None and Input.WRITE in LINE[line.state]:
            epoch, counter, end = line.block
            if counter >= end:
                self._renew_block(line)
                return
            if line.record.is_expired(self._now):
                self._expire_locally(line)
                continue
            op, change = line.writers.pop(0)
            refusal = judge(line.record, change)
            if refusal is None:
                version = Version(epoch, counter)
                self._commit_locally(line, changed(line.record, change, version, self._now))
                self._answer(op, Written(version))
            else:
                self._answer(op, refusal)

    def _commit_locally(self, line: Line, record: Record) -> None:
        epoch, counter, end = line.block
        line.block = (epoch, counter + 1, end)
        line.serve_until_ms = record.expires_ms
        line.written_ms = self._now
        if line.state not in DIRTY:
            line.dirty_since_ms = self._now
        self._become(line, Input.WRITE, record)
        self._arm_idle(line)
        self.lru.touch(line.key)

    def _expire_locally(self, line: Line) -> None:
        """The owner is the only one who knows: it deletes."""
        if line.record is None or line.block[1] >= line.block[2]:
            self._renew_block(line)
            return
        version = Version(line.block[0], line.block[1])
        self._commit_locally(line, Record(version, None, 0, line.record.fences))
        if line.readers and self._is_readable(line):
            self._serve_readers(line, Missing(version))

    def _renew_block(self, line: Line) -> None:
        """All versions are used: write back, and ask for the ownership again."""
        if line.state is LineState.MODIFIED:
            self._write_back(line, stays=False)
        elif line.state is LineState.EXCLUSIVE:
            self._become(line, Input.DROP, None)

    def _arm_idle(self, line: Line) -> None:
        """Nobody but this node knows when such a line has not been written for a while."""
        if line.state in DIRTY and line.is_own:
            idle_ms = self._options.write_back_at_ms(line.written_ms, line.dirty_since_ms)
            retry_ms = self._now + self._options.redis_retry_ms
            self.timers.soonest(("idle", line.key), max(idle_ms, retry_ms))

    def _write_back_idle(self, key: str) -> None:
        line = self.lru.get(key)
        if line is None or line.state is not LineState.MODIFIED:
            return
        if self._options.write_back_at_ms(line.written_ms, line.dirty_since_ms) > self._now:
            self._arm_idle(line)
        else:
            self._write_back(line, stays=True)

    # --- Asking the home ----------------------------------------------------------------------

    @property
    def _now(self) -> int:
        return self._context.now_ms

    def _floor(self) -> int:
        return next(iter(self._asks), self._last_number + 1)

    def _ask(self, line: Line, what: Input, wish: Wish) -> None:
        if line.home is None:
            raise InvariantViolation(f"{line.key} has no home to ask")
        keeps = next_state(line.state, what) in HAS_RECORD
        self._become(line, what, line.record if keeps else None)
        self._parked.pop(line.key, None)
        self._last_number += 1
        number = self._last_number
        lease = self.leases[line.home]
        line.ask = AskUnderWay(
            number=number, home=line.home, wish=wish, lease=lease.number, sent_ms=self._now
        )
        self._asks[number] = line.key
        self._send_ask(line, line.ask)

    def _send_ask(self, line: Line, ask: AskUnderWay) -> None:
        message = Ask(ask.lease, ask.number, self._floor(), line.key, ask.wish)
        self._context.send(ask.home, message)
        self.timers.set(("ask", ask.number), self._now + self._options.resend_ms)

    def _end_ask(self, line: Line) -> None:
        if line.ask is not None:
            del self._asks[line.ask.number]
            self.timers.cancel(("ask", line.ask.number))
            line.ask = None

    def reply(self, source: PeerId, message: Reply) -> None:
        """The home has answered an Ask; answers to others than the one under way are refused."""
        line = self.lru.get(self._asks.get(message.number, ""))
        lease = self._lease_of(source)
        if line is None or line.ask is None or lease is None or line.ask.home != source:
            return
        if line.ask.lease != message.lease or not self._holds(lease, message.lease):
            return
        ask = line.ask
        lease.extend(message.lease, ask.sent_ms, message.lease_ms)
        self._end_ask(line)
        match message.result:
            case Granted() as granted:
                self._granted(line, ask, granted)
            case Committed() as committed if ask.moved:
                self._given_up(line, ask, committed.version)
            case Committed() as committed:
                self._committed(line, ask, committed)
            case GivenUp() as given_up:
                self._given_up(line, ask, given_up.version)
                if not ask.moved:
                    self._parked[line.key] = None  # until there is another ring
                    return
            case WrittenBack():
                self._written_back(line, ask)
            case Denied() as denied:
                self._denied(line, Refused(denied.code, denied.version, denied.newest))
            case _:
                assert_never(message.result)
        self._drive(line)

    def _holds(self, lease: HeldLease, number: int) -> bool:
        return lease.number == number and lease.is_valid(self._now)

    def _granted(self, line: Line, ask: AskUnderWay, granted: Granted) -> None:
        copy = granted.copy
        record = received(copy, self._now)
        what = Input.FILL_EXCLUSIVE if granted.exclusive else Input.FILL_SHARED
        if isinstance(ask.wish, AskOwnership):
            what = Input.OWNERSHIP
        installs = next_state(line.state, what) in HAS_RECORD
        if isinstance(ask.wish, AskRead):
            self._serve_readers(line, self._found(record, hit=False))
            self._judge_doubt(line, record.version)
        self._become(line, what, record if installs else None)
        line.readers, line.late_readers = line.readers + line.late_readers, []
        if installs:
            line.grant = ask.number
            line.block = granted.block or (0, 0, 0)
            line.serve_until_ms = self._serve_until(ask.sent_ms, copy.remaining_ms)
            if granted.block is not None:
                line.serve_until_ms = record.expires_ms  # its owner alone says when that is over
            self.lru.touch(line.key)

    def _committed(self, line: Line, ask: AskUnderWay, committed: Committed) -> None:
        what = Input.COMMITTED_DIRTY if committed.dirty else Input.COMMITTED_CLEAN
        self._take_commit(line, ask, committed, what)
        self.lru.touch(line.key)

    def _take_commit(
        self, line: Line, ask: AskUnderWay, committed: Committed, what: Input
    ) -> Record:
        """The change that was at the home is made: hold it and tell the client."""
        if not isinstance(ask.wish, AskWrite) or line.writer is None:
            raise InvariantViolation(f"{line.key} committed what nobody wrote")
        change = ask.wish.change
        record = changed(NOTHING, change, committed.version, ask.sent_ms)
        record = Record(record.version, record.value, record.expires_ms, committed.fences)
        held = next_state(line.state, what) in HAS_RECORD
        self._become(line, what, record if held else None)
        if held:
            line.grant = ask.number
            ttl_ms = change.ttl_ms if change.value is not None else 0
            line.serve_until_ms = self._serve_until(ask.sent_ms, ttl_ms)
        op, line.writer = line.writer, None
        self._answer(op, Written(committed.version))
        return record

    def _written_back(self, line: Line, ask: AskUnderWay) -> None:
        wish = ask.wish
        if not isinstance(wish, AskWriteBack):
            raise InvariantViolation(f"{line.key} was written back unasked")
        newer = (
            wish.copy is not None
            and line.record is not None
            and line.record.version > wish.copy.version
        )
        what = Input.WRITTEN_BACK if wish.stays else Input.EVICTED
        if newer:
            what = Input.WRITTEN_BACK_OLDER
            line.dirty_since_ms = ask.sent_ms
        keeps = next_state(line.state, what) in HAS_RECORD
        self._become(line, what, line.record if keeps else None)
        self._arm_idle(line)
        if not keeps:
            self._tell_dropped(line)

    def _denied(self, line: Line, refusal: Refused) -> None:
        was_write = line.state in COMMITTING
        was_write_back = line.state in READABLE
        keeps = next_state(line.state, Input.DENIED) in HAS_RECORD
        self._become(line, Input.DENIED, line.record if keeps else None)
        if was_write and line.writer is not None:
            op, line.writer = line.writer, None
            self._answer(op, refusal)
        elif was_write_back:
            self._arm_idle(line)
        else:
            readers = line.readers + line.late_readers
            line.readers, line.late_readers = [], []
            for op in readers:
                self._answer(op, refusal)
            while line.writers:
                self._answer(line.writers.pop(0)[0], refusal)
            if line.doubt is not None:
                self._end_doubt(line, Refused(Code.UNKNOWN))

    # --- Writes under way when the home moved -------------------------------------------------

    def _is_heard(self, ask: AskUnderWay) -> bool:
        """Whether who was asked can still say what became of it."""
        lease = self._lease_of(ask.home)
        return lease is not None and self._holds(lease, ask.lease)

    def _given_up(self, line: Line, ask: AskUnderWay, version: Version) -> None:
        """It was made under that version or never: the home of now is asked which."""
        if not isinstance(ask.wish, AskWrite) or line.writer is None:
            raise InvariantViolation(f"{line.key} was not written and given up")
        keeps = next_state(line.state, Input.DENIED) in HAS_RECORD
        self._become(line, Input.DENIED, line.record if keeps else None)
        line.doubt = Doubt(ask.wish.change, version)
        if version == ABSENT:
            self._write_again(line, line.doubt)

    def _judge_doubt(self, line: Line, version: Version) -> None:
        """A home has the key now under that version.

        It was told of all that was made under older epochs, and nothing of them is made any more.
        Behind a later write nobody can see.
        """
        doubt = line.doubt
        if doubt is None:
            return
        if version < doubt.version:
            self._write_again(line, doubt)
        elif version == doubt.version:
            self._end_doubt(line, Written(version))
        else:
            self._end_doubt(line, Refused(Code.UNKNOWN))

    def _write_again(self, line: Line, doubt: Doubt) -> None:
        if line.writer is not None:
            line.writers.insert(0, (line.writer, doubt.change))
        line.writer = line.doubt = None

    def _end_doubt(self, line: Line, outcome: Outcome) -> None:
        op, line.writer, line.doubt = line.writer, None, None
        if op is not None:
            self._answer(op, outcome)

    # --- Lines that go ------------------------------------------------------------------------

    def _serve_until(self, sent_ms: int, remaining_ms: int) -> int:
        if not remaining_ms:
            return 0
        return max(1, sent_ms + self._options.remaining_at_holder_ms(remaining_ms))

    def _give_up(self, line: Line) -> None:
        """Nobody waits for the answer: whatever comes is refused."""
        if line.state in DIRTY:
            self._keep(line)
        keeps = next_state(line.state, Input.GIVE_UP) in HAS_RECORD
        self._end_ask(line)
        self._become(line, Input.GIVE_UP, line.record if keeps else None)
        if line.writer is not None:
            op, line.writer = line.writer, None
            self._answer(op, Refused(Code.UNKNOWN))
        line.readers, line.late_readers = line.readers + line.late_readers, []

    # --- Asked by the home --------------------------------------------------------------------

    def yield_line(self, source: PeerId, message: Snoop | Invalidate) -> None:
        """Another node reads or writes."""
        line = self.lru.get(message.key)
        lease = self.leases.get(source)
        copy = None
        if (
            line is not None
            and line.home == source
            and lease is not None
            and self._holds(lease, message.lease)
        ):
            copy = self._yield_held(line, message)
        self._yielded(source, message, copy)
        if line is not None:
            self._drive(line)

    def _yield_held(self, line: Line, message: Snoop | Invalidate) -> Copy | None:
        snoop = isinstance(message, Snoop)
        ask = line.ask
        if ask is not None and ask.number == message.grant:
            return self._overtaken(line, ask, message)
        what = Input.SNOOP if snoop else Input.INVALIDATE
        if line.grant != message.grant or line.record is None or what not in LINE[line.state]:
            return None
        record = line.record
        expired = 0 < line.serve_until_ms <= self._now
        if line.state in DIRTY:
            self._keep(line)
        if not snoop and not expired:
            self.invalidations += 1
        elif snoop and line.state in OWNED:  # else it is asked again
            self.snoops += 1
        keeps = next_state(line.state, what) in HAS_RECORD
        self._become(line, what, record if keeps else None)
        if not keeps:
            self._gone.note(line.key, Miss.EXPIRED if expired else Miss.INVALIDATED)
        return record.copy(self._now)

    def _overtaken(self, line: Line, ask: AskUnderWay, message: Snoop | Invalidate) -> Copy | None:
        """The home speaks of a grant that has not arrived here."""
        snoop = isinstance(message, Snoop)
        what = Input.SNOOP_OVERTAKES if snoop else Input.INVALIDATE_OVERTAKES
        self._gone.note(line.key, Miss.INVALIDATED)
        if next_state(line.state, what) is not line.state:  # else it is asked again
            self.snoops += snoop
            self.invalidations += not snoop
        if line.state not in COMMITTING:
            self._become(line, what, None)
            return None
        if message.committed is None:
            raise InvariantViolation(f"the home of {line.key} does not know what it committed")
        self._end_ask(line)
        record = self._take_commit(line, ask, message.committed, what)
        if message.committed.dirty:
            self._kept.keep(line.key, Kept(record=record, since_ms=self._now))
        return record.copy(self._now) if line.record is not None else None

    def _yielded(self, source: PeerId, message: Snoop | Invalidate, copy: Copy | None) -> None:
        kept = self._kept.get(message.key)
        version = ABSENT
        if kept is not None:
            version = kept.record.version
            # An answer that was lost is given again.
            if copy is None and kept.owner_of == source and kept.grant == message.grant:
                copy = kept.record.copy(self._now)
        self._context.send(source, Yielded(message.lease, message.txn, message.key, version, copy))

    def cleaned(self, message: Cleaned) -> None:
        """Redis has that version."""
        self._kept.clean(message.key, message.version)
        line = self.lru.get(message.key)
        if line is None or line.record is None or line.record.version != message.version:
            return
        if Input.CLEANED in LINE[line.state]:
            self._become(line, Input.CLEANED, line.record)

    def mirror(self, source: PeerId, message: Mirror) -> None:
        """Keep a copy for another home."""
        if self._context.draining:
            self._context.send(source, Mirrored(message.txn, message.key, False))
            return
        record = received(message.copy, self._now)
        self._kept.keep(message.key, Kept(record=record, since_ms=self._now))
        self._context.send(source, Mirrored(message.txn, message.key))

    # --- Leases -------------------------------------------------------------------------------

    def _has_lease(self, home: PeerId) -> bool:
        lease = self.leases.get(home)
        return lease is not None and lease.is_valid(self._now)

    def _lease_of(self, home: PeerId) -> HeldLease | None:
        return self.leases.get(home) or self.left.get(home)

    def expire_leases(self) -> None:
        """Drop the lines of each lease that has ended. Before anything else of an event."""
        for lease in self.leases.values():
            if lease.has_lapsed(self._now):
                self._lapse(lease)
        if self.left:
            for lease in [one for one in self.left.values() if one.has_lapsed(self._now)]:
                del self.left[lease.home]
                self._drop_all_of(lease)

    def _drop_all_of(self, lease: HeldLease) -> None:
        lease.lapse()
        for line in [line for _, line in self.lru.items()]:
            asked = None if line.ask is None else line.ask.home
            if lease.home in (line.home, asked):
                self._drop(line, keep_local=False)

    def _lapse(self, lease: HeldLease) -> None:
        self._drop_all_of(lease)
        for key in [key for key, kept in self._kept.items() if kept.owner_of == lease.home]:
            self._lose(key)
        self.timers.soonest(("renew", lease.home), self._now)

    def _lose(self, key: str) -> None:
        version = self._kept.version(key)
        if version is not None:
            self._kept.drop(key)
            self._context.effects.append(LineDropped(key, version))

    def renew(self, home: PeerId) -> None:
        """Ask for the next lease, or for the first."""
        lease = self.leases.get(home)
        if lease is None or self._context.retired:
            return
        asked = lease.number == 0 and lease.renewal != 0
        if not asked or self._now - lease.renewal_sent_ms >= self._options.copy_lease_ms:
            self._last_number += 1
            lease.renewal = self._last_number
            lease.renewal_sent_ms = self._now
        self._context.send(home, Renew(lease.number, lease.renewal, self._floor()))
        again_ms = self._options.renew_ms if lease.number else self._options.resend_ms
        self.timers.set(("renew", home), self._now + again_ms)

    def renewed(self, source: PeerId, message: Renewed) -> None:
        """The home has answered."""
        lease = self.leases.get(source)
        if lease is None or message.number != lease.renewal:
            return
        if lease.number == 0:
            if lease.begin(message.lease, lease.renewal_sent_ms, message.lease_ms, self._now):
                lease.renewal = 0
                self.timers.set(("renew", source), self._now + self._options.renew_ms)
                self.drive_parked()
        elif message.lease == lease.number:
            lease.extend(message.lease, lease.renewal_sent_ms, message.lease_ms)
        else:
            self._lapse(lease)

    def drive_parked(self) -> None:
        """A lease lasts that did not: go on with those who wait."""
        parked, self._parked = self._parked, {}
        for key in parked:
            line = self.lru.get(key)
            if line is not None:
                self._drive(line)

    # --- Ring ---------------------------------------------------------------------------------

    def adopt(self, *, continuous: bool) -> None:
        """A new ring: drop what has moved. `continuous`: nobody can have been home in between."""
        peers = self._context.peers
        for gone in [home for home in self.leases if home not in peers]:
            lease = self.leases.pop(gone)
            self.timers.cancel(("renew", gone))
            if lease.is_valid(self._now):
                self.left[gone] = lease
        for peer in sorted(peers - self.leases.keys()):
            self.leases[peer] = HeldLease(home=peer)
            self.left.pop(peer, None)  # it is back, and has forgotten
            self.timers.set(("renew", peer), self._now)
        if not continuous and self._context.me in peers:
            # This home has forgotten the leases that it granted. Others hear so when they renew.
            self.timers.set(("renew", self._context.me), self._now)
        for line in [line for _, line in self.lru.items()]:
            home = self._context.home_of(line.key)
            is_heard = line.ask is None or self._is_heard(line.ask)
            if home != line.home or not continuous or not is_heard:
                self._drop(line, keep_local=continuous)
                line.home = home
        if not continuous:
            # A home that was not told of them may have gone on without them.
            for key in [key for key, kept in self._kept.items() if kept.unmarked]:
                self._lose(key)
        for line in [line for _, line in self.lru.items()]:
            if line.ask is not None:
                self._send_ask(line, line.ask)
            else:
                self._drive(line)

    def _drop(self, line: Line, *, keep_local: bool) -> None:
        """Serve the line no longer; what nobody else may have is kept for safety."""
        if line.state in DIRTY and line.record is not None:
            if line.is_own and not keep_local:
                self._context.effects.append(LineDropped(line.key, line.record.version))
            else:
                self._keep(line)
        if line.record is not None:
            self._gone.note(line.key, Miss.NO_LEASE)
        if line.state in COMMITTING and line.ask is not None and self._is_heard(line.ask):
            line.ask.moved = True
            self._become(line, Input.MOVED, None)
        else:
            self._end_ask(line)
            self._become(line, Input.DROP, None)
            if line.doubt is None:
                self._end_doubt(line, Refused(Code.UNKNOWN))
        line.readers, line.late_readers = line.readers + line.late_readers, []
        if line.ask is not None:
            return
        if line.has_calls:
            self._parked[line.key] = None
        else:
            self._settle(line)

    def retire(self) -> None:
        """This node leaves: what still waits was not sent, and is for others to do."""
        for key in list(self._parked):
            line = self.lru.get(key)
            if line is None:
                continue
            for op in [*line.readers, *line.late_readers, *(op for op, _ in line.writers)]:
                self._answer(op, Refused(Code.UNAVAILABLE))
            line.readers, line.late_readers, line.writers = [], [], []
            self._settle(line)

    def _keep(self, line: Line) -> None:
        if line.record is None:
            raise InvariantViolation(f"{line.key} is dirty and empty")
        kept = Kept(
            record=line.record,
            since_ms=self._now,
            grant=line.grant,
            owner_of=line.home if line.is_own else None,
            unmarked=line.is_own,
        )
        self._kept.keep(line.key, kept)

    # --- Room ---------------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Evict the least recently used: clean ones now, dirty ones once they are in Redis.

        Return whether there were any.
        """
        beside = self._kept.bytes + self._homed()
        chosen = self.lru.over_limit(self._may_go, self._leaving_bytes, beside)
        for key in chosen:
            line = self.lru.get(key)
            if line is None:
                continue
            self.evictions += 1
            self._gone.note(line.key, Miss.EVICTED)
            if line.state is LineState.MODIFIED:
                self._write_back(line, stays=False)
            else:
                self._become(line, Input.DROP, None)
                self._tell_dropped(line)
                self._settle(line)
        return bool(chosen)

    def _tell_dropped(self, line: Line) -> None:
        lease = None if line.home is None else self.leases.get(line.home)
        if lease is not None and lease.number:
            self._context.send(lease.home, Dropped(lease.number, line.key, line.grant))

    def _may_go(self, line: Line) -> bool:
        return line.ask is None and not line.has_calls and line.state in READABLE

    def _write_back(self, line: Line, *, stays: bool) -> None:
        """Have Redis take a dirty line: to drop it then, or to hold it as clean."""
        if line.record is None or line.home is None or not self._has_lease(line.home):
            return
        copy = line.record.copy(self._now) if line.is_own else None
        what = Input.ASK_CLEANING if stays else Input.ASK_EVICTION
        self._ask(line, what, AskWriteBack(line.grant, copy, stays))

    def _write_back_oldest(self, size: int) -> None:
        while size > 0 and self.modified:
            line = self._modified_first()
            size -= line.size
            self._write_back(line, stays=False)

    def write_back_more(self) -> None:
        """Begin to evict dirty lines, as many as may be under way at once."""
        for _ in range(self._options.write_backs_at_once - len(self._asks)):
            if not self.modified:
                return
            self._write_back(self._modified_first(), stays=False)

    def _modified_first(self) -> Line:
        key = next(iter(self.modified))
        line = self.lru.get(key)
        if line is None:
            raise InvariantViolation(f"{key} is dirty and not here")
        return line

    def dirty_since_ms(self, now_ms: int) -> int:
        """Return since when an owner under local durability has had a value that Redis has not."""
        lines = (line for _, line in self.lru.items() if line.state in DIRTY)
        return min((one.dirty_since_ms for one in lines if one.dirty_since_ms), default=now_ms)

    @property
    def is_clean(self) -> bool:
        """Whether no value is here that Redis has not, none is on its way, and none in doubt."""
        if self.modified or self._asks:
            return False
        parked = (self.lru.get(key) for key in self._parked)
        return all(line is None or line.doubt is None for line in parked)

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        for kind, name in self.timers.due(self._now):
            if kind == "renew":
                self.renew(PeerId(str(name)))
            elif kind == "idle":
                self._write_back_idle(str(name))
            elif isinstance(name, int):
                line = self.lru.get(self._asks.get(name, ""))
                if line is not None and line.ask is not None:
                    self._send_ask(line, line.ask)

    def next_tick_ms(self) -> int | None:
        """Return when something is due next."""
        leases = (*self.leases.values(), *self.left.values())
        times = [lease.ends_ms for lease in leases if lease.number]
        due = self.timers.next_ms()
        return min(times if due is None else [*times, due], default=None)

    # --- Helpers ------------------------------------------------------------------------------

    def _is_local(self, key: str) -> bool:
        return self._options.durability_of(key) is Durability.LOCAL

    def _become(self, line: Line, what: Input, record: Record | None) -> None:
        """Take one step of the table, and hold that record from now on."""
        if line.state in DIRTY:
            self.dirty_bytes -= line.size
        if line.state is LineState.WRITING_BACK:
            self._leaving_bytes -= line.size
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
            self._leaving_bytes += line.size
        if line.state is LineState.MODIFIED:
            self.modified[line.key] = None
        if line.key in self.lru:
            self.lru.resize(line.key, line.size)

    def _serve_readers(self, line: Line, outcome: Outcome) -> None:
        readers, line.readers = line.readers, []
        for op in readers:
            self._answer(op, outcome)

    def _found(self, record: Record, *, hit: bool) -> Outcome:
        if record.value is None:
            return Missing(record.version, hit)
        remaining_ms = max(1, record.expires_ms - self._now) if record.expires_ms else 0
        return Found(record.version, record.value, remaining_ms, hit)

    def _answer(self, op: OpId, outcome: Outcome) -> None:
        self._calls.pop(op, None)
        self._waiting_bytes -= self._sizes.pop(op, 0)
        self._context.effects.append(Answer(op, outcome))
