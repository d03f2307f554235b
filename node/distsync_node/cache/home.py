"""The home of keys: a directory, and one transaction a key (the essay is in `__init__.py`).

A transaction is driven by level, not by edge: `_step` looks at what is still missing, asks for it
and returns; whatever comes leads back to it. Which states may follow which is in `tables.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, assert_never

import msgspec

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import GrantedLease, GrantedLeases
from distsync_node.cache.directory import Entry, Txn
from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import Forgotten, Loaded, Mark, RedisFailed, Stored
from distsync_node.cache.handover import Handover
from distsync_node.cache.judging import Offer, changed, choose_survivor, judge
from distsync_node.cache.kept import Kept, KeptCopies
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
    Result,
    Snoop,
    WrittenBack,
    Yielded,
)
from distsync_node.cache.tables import TxnKind, TxnState
from distsync_node.cache.timers import Timers
from distsync_node.cache.types import (
    ABSENT,
    Change,
    Code,
    Copy,
    Durability,
    PeerId,
    Record,
    Refused,
    Version,
    received,
)
from distsync_node.errors import InvariantViolation

BLOCK: Final = 1 << 20
"""How many versions an owner under local durability may assign by itself."""


class _Step(Enum):
    WAIT = auto()
    AGAIN = auto()
    DONE = auto()


class Home:
    """All keys whose home this node is."""

    def __init__(self, context: Context, kept: KeptCopies, handover: Handover) -> None:
        self._context = context
        self._options = context.options
        self._kept = kept
        self._handover = handover
        self._last_txn = 0
        self._last_request = 0
        self._counter = 0
        self._requests: dict[int, tuple[str, str, Version]] = {}  # key, what for, version written
        self._parked: dict[str, None] = {}  # wait for the takeover or for the node lease
        self.unwritten: OrderedDict[str, None] = OrderedDict()  # dirty, and no flush under way
        self.flushing: set[str] = set()  # a flush is under way
        self.deciding: set[str] = set()  # a version is assigned and not committed
        self.entries: dict[str, Entry] = {}
        self.leases = GrantedLeases(context.options)
        self.timers: Timers[tuple[str, str]] = Timers()
        self.dirty_bytes = 0

    # --- From holders -------------------------------------------------------------------------

    def renew(self, source: PeerId, message: Renew) -> None:
        """A holder wants its lease renewed, or a new one."""
        lease = self.leases.by_holder.get(source)
        if message.lease:
            if lease is None or lease.number != message.lease:
                self._context.send(source, Renewed(0, message.number, 0))
                return
        elif lease is None or lease.made_by != message.number:
            if message.number <= self.leases.made_by.get(source, 0):
                return
            # It says that it holds nothing of ours.
            self._lapse(source)
            lease = self.leases.grant(source, message.number, self._now)
        lease.finished_below(message.floor)
        lease_ms = self.leases.renew(lease, self._now)
        self._context.send(source, Renewed(lease.number, message.number, lease_ms))

    def ask(self, source: PeerId, message: Ask) -> None:
        """A holder asks. The same number is served once."""
        lease = self.leases.find(source, message.lease)
        if lease is None:
            return
        lease.finished_below(message.floor)
        if message.number < lease.floor:
            return
        if message.number in lease.answers:
            known = lease.answers[message.number]
            if known is not None:
                self._send_reply(lease, message.number, *known)
            return
        if self._context.retired or self._context.home_of(message.key) != self._context.me:
            if isinstance(message.wish, AskWrite):
                lease.answers[message.number] = (message.key, GivenUp())
                self._send_reply(lease, message.number, message.key, GivenUp())
            return
        lease.answers[message.number] = None
        entry = self._entry(message.key)
        entry.queue.append(self._txn_of(source, message))
        self._run(entry)

    def _txn_of(self, source: PeerId, message: Ask) -> Txn:
        match message.wish:
            case AskRead():
                kind = TxnKind.READ
            case AskOwnership():
                kind = TxnKind.OWNERSHIP
            case AskWrite():
                kind = TxnKind.WRITE
            case AskWriteBack():
                kind = TxnKind.WRITE_BACK
            case _:
                assert_never(message.wish)
        txn = Txn(
            kind=kind,
            key=message.key,
            source=source,
            id=self._next_txn(),
            lease=message.lease,
            number=message.number,
        )
        if isinstance(message.wish, AskWrite):
            txn.change = message.wish.change
        elif isinstance(message.wish, AskWriteBack):
            txn.grant, txn.copy = message.wish.grant, message.wish.copy
        return txn

    def yielded(self, source: PeerId, message: Yielded) -> None:
        """A holder has answered a snoop or an invalidation."""
        lease = self.leases.by_holder.get(source)
        if lease is not None:
            lease.unacknowledged.discard((message.txn, message.key))
        entry = self.entries.get(message.key)
        txn = None if entry is None else entry.txn
        if entry is None or txn is None or txn.id != message.txn or source not in txn.waiting:
            return
        txn.waiting.discard(source)
        self._take_yielded(entry, txn, source, message)
        self._run(entry)

    def _take_yielded(self, entry: Entry, txn: Txn, source: PeerId, message: Yielded) -> None:
        was_owner, grant = entry.owner == source, entry.owner_grant
        self._forget(entry, source)
        if was_owner and entry.dirty:
            entry.confirmed = message.version >= entry.record.version
        copy = message.copy
        if copy is not None and was_owner:
            if copy.version > entry.record.version:
                self._set(entry, received(copy, self._now), dirty=True, confirmed=False)
            elif copy.version == entry.record.version and not entry.has_value:
                entry.record = Record(
                    copy.version, copy.value, entry.record.expires_ms, copy.fences
                )
                entry.has_value = True
        if copy is not None and txn.state is TxnState.SNOOPING:
            self._share(entry, source, grant)

    def dropped(self, source: PeerId, message: Dropped) -> None:
        """A holder has evicted what that grant gave it."""
        entry = self.entries.get(message.key)
        if self.leases.find(source, message.lease) is None or entry is None:
            return
        if entry.grant_of(source) != message.grant or entry.txn is not None:
            return
        self._forget(entry, source)
        self._run(entry)

    def mirrored(self, source: PeerId, message: Mirrored) -> None:
        """The successor has the copy."""
        entry = self.entries.get(message.key)
        txn = None if entry is None else entry.txn
        if entry is None or txn is None or txn.id != message.txn or txn.mirror != source:
            return
        if not message.kept:
            self._mirror_is_silent(entry, txn)
            return
        txn.mirror, txn.mirrored = None, True
        self._run(entry)

    def offer(self, source: PeerId, key: str, copy: Copy, *, unmarked: bool) -> None:
        """Somebody has kept a copy of a key of this home; `unmarked` as in `Kept`."""
        if self._context.home_of(key) != self._context.me:
            return
        entry = self._entry(key)
        record = received(copy, self._now)
        known = entry.offers.get(source)
        if known is None or known.record.version < record.version:
            entry.offers[source] = Offer(record, unmarked)
        waits = [txn for txn in (entry.txn, *entry.queue) if txn is not None]
        if not any(txn.kind is TxnKind.RECOVERY and txn.state is None for txn in waits):
            txn = Txn(kind=TxnKind.RECOVERY, key=key, source=self._context.me, id=self._next_txn())
            entry.queue.append(txn)
        self._run(entry)

    # --- Transactions -------------------------------------------------------------------------

    def _run(self, entry: Entry) -> None:
        """Go on with the key as far as it goes now."""
        while True:
            if entry.txn is None:
                entry.txn = self._next(entry)
                if entry.txn is None:
                    self._rest(entry)
                    return
            match self._step(entry, entry.txn):
                case _Step.WAIT:
                    return
                case _Step.DONE:
                    entry.txn.become(TxnState.DONE)
                    self._end_txn(entry)
                case _Step.AGAIN:
                    pass

    def _end_txn(self, entry: Entry) -> None:
        entry.txn = None
        self.deciding.discard(entry.key)

    def _next(self, entry: Entry) -> Txn | None:
        """Return the next of the queue; those whose holder has lapsed or given up are left out."""
        while entry.queue:
            txn = entry.queue.pop(0)
            if not txn.lease or self._is_wanted(entry, txn):
                return txn
        return None

    def _is_wanted(self, entry: Entry, txn: Txn) -> bool:
        """Whether the holder still waits for it, as far as is known here.

        It has one Ask a line under way: who was granted a later one has given this one up, even if
        another line keeps its floor below. To grant it would be to forget what it really holds.
        """
        lease = self.leases.find(txn.source, txn.lease)
        if lease is None or txn.number < lease.floor:
            return False
        return entry.grant_of(txn.source) < txn.number

    def _rest(self, entry: Entry) -> None:
        """Nothing is under way: remember no more than has to be."""
        if entry.is_idle:
            self.entries.pop(entry.key, None)
            self._parked.pop(entry.key, None)
            self.timers.cancel(("txn", entry.key))
            self.timers.cancel(("flush", entry.key))
        elif entry.has_value and not entry.dirty:
            value = None if entry.record.value is None else b""
            entry.has_value = entry.record.value is None
            entry.record = Record(
                entry.record.version, value, entry.record.expires_ms, entry.record.fences
            )

    def _step(self, entry: Entry, txn: Txn) -> _Step:
        if not self._handover.covers(entry.key):
            txn.become(TxnState.TAKING_OVER)
            return self._park(entry)
        if txn.request or txn.waiting or txn.mirror is not None:
            return _Step.WAIT
        if txn.version is not None:
            return self._make_durable(entry, txn)
        if not entry.loaded or (entry.lost and entry.offers and txn.kind is TxnKind.RECOVERY):
            return self._load(entry, txn)
        if txn.kind is TxnKind.RECOVERY:
            return self._recovered(entry)
        if txn.kind is TxnKind.WRITE_BACK:
            return self._write_back(entry, txn)
        if entry.lost and (txn.kind is not TxnKind.WRITE or self._is_conditional(txn)):
            return self._refuse(entry, txn, Refused(Code.LINE_LOST))
        if txn.kind is not TxnKind.EXPIRY and self._is_expired(entry):
            return self._expire(entry, txn)
        if txn.kind is TxnKind.READ:
            return self._read(entry, txn)
        return self._write(entry, txn)

    def _park(self, entry: Entry) -> _Step:
        self._parked[entry.key] = None
        return _Step.WAIT

    def resume(self) -> None:
        """The takeover is complete, or the node lease lasts again."""
        parked, self._parked = self._parked, {}
        for key in parked:
            entry = self.entries.get(key)
            if entry is not None:
                self._run(entry)

    def _may_finish(self, entry: Entry, txn: Txn) -> bool:
        """Nothing is committed or granted without the node lease."""
        if self._context.holds_node_lease():
            return True
        txn.become(TxnState.STALLED)
        self._park(entry)
        return False

    def _is_conditional(self, txn: Txn) -> bool:
        return txn.change is None or txn.change.if_version is not None

    def _is_expired(self, entry: Entry) -> bool:
        return not self._is_behind(entry) and not entry.lost and entry.record.is_expired(self._now)

    def _expire(self, entry: Entry, txn: Txn) -> _Step:
        """First delete what has expired, as a transaction of its own."""
        txn.state = None
        entry.queue.insert(0, txn)
        entry.txn = Txn(
            kind=TxnKind.EXPIRY,
            key=entry.key,
            source=self._context.me,
            id=self._next_txn(),
            change=Change(None),
        )
        return _Step.AGAIN

    # --- Reads --------------------------------------------------------------------------------

    def _read(self, entry: Entry, txn: Txn) -> _Step:
        if entry.owner == txn.source:
            return self._owner_came_empty(entry, txn)
        if entry.owner is not None:
            txn.become(TxnState.SNOOPING)
            self._ask_to_yield(entry, txn, {entry.owner})
            return _Step.WAIT
        if not entry.has_value:
            return self._load(entry, txn)
        if entry.dirty and not entry.confirmed:
            return self._secure(entry, txn)
        if not self._may_finish(entry, txn):
            return _Step.WAIT
        self._forget(entry, txn.source)
        exclusive = not entry.sharers
        self._grant(entry, txn, exclusive=exclusive)
        return _Step.DONE

    def _owner_came_empty(self, entry: Entry, txn: Txn) -> _Step:
        """Who asks holds nothing, whatever the directory says."""
        self._forget(entry, txn.source)
        if self._mode(entry) is Durability.LOCAL and not entry.dirty:
            entry.loaded = entry.has_value = False  # what it may have written is gone
        return _Step.AGAIN

    def _grant(self, entry: Entry, txn: Txn, *, exclusive: bool) -> None:
        lease = self.leases.find(txn.source, txn.lease)
        if lease is None:
            return
        block = None
        if exclusive:
            if self._mode(entry) is Durability.LOCAL:
                block = (self._context.epoch, self._counter + 1, self._counter + 1 + BLOCK)
                self._counter += BLOCK
            self._own(entry, txn, None)
        else:
            self._share(entry, txn.source, txn.number)
        copy = entry.record.copy(self._now)
        self._reply(txn, Granted(copy, exclusive, block))

    # --- Writes -------------------------------------------------------------------------------

    def _is_behind(self, entry: Entry) -> bool:
        """Whether an owner writes by itself, so that it alone knows the newest.

        That is for the durability of this home to say: an owner got a block with its grant. Whose
        write was committed here has none, and writes here again.
        """
        owns_block = entry.owner is not None and entry.owner_commit is None
        return owns_block and self._mode(entry) is Durability.LOCAL

    def _write(self, entry: Entry, txn: Txn) -> _Step:
        if self._is_behind(entry) and entry.owner == txn.source:
            return self._owner_came_empty(entry, txn)
        if not self._is_behind(entry):
            refusal = self._judge(entry, txn)
            if refusal is not None:
                return self._refuse(entry, txn, refusal)
        others = set(entry.holders())
        if txn.kind is not TxnKind.EXPIRY:
            others.discard(txn.source)
        if others:
            txn.become(TxnState.INVALIDATING)
            self._ask_to_yield(entry, txn, others)
            return _Step.WAIT
        if txn.kind is TxnKind.OWNERSHIP:
            return self._give_ownership(entry, txn)
        return self._make_durable(entry, txn)

    def _judge(self, entry: Entry, txn: Txn) -> Refused | None:
        if txn.change is None or txn.kind is TxnKind.EXPIRY:
            return None
        return judge(entry.record, txn.change, lost=entry.lost)

    def _give_ownership(self, entry: Entry, txn: Txn) -> _Step:
        if entry.dirty:
            return self._secure(entry, txn)
        if not entry.has_value:
            return self._load(entry, txn)
        if not self._may_finish(entry, txn):
            return _Step.WAIT
        self._forget(entry, txn.source)
        self._grant(entry, txn, exclusive=True)
        return _Step.DONE

    def _second_place(self, entry: Entry, txn: Txn) -> PeerId | None:
        """Return who has the value beside this node; None: Redis must have it."""
        if self._mode(entry) is not Durability.MIRRORED or self._context.draining or entry.lost:
            return None
        me, peers = self._context.me, self._context.peers
        second = self._context.successor_of(entry.key) if txn.source == me else txn.source
        return second if second in peers else None

    def _make_durable(self, entry: Entry, txn: Txn) -> _Step:
        """See to it that the new value is where its durability says; then commit."""
        second = None if txn.without_mirror else self._second_place(entry, txn)
        if entry.flush:
            # Which version Redis has is open until that is answered.
            return self._secure(entry, txn)
        if txn.version is None:
            if second is not None and self._is_full(txn):
                return self._deny(txn, Refused(Code.LIMIT))
            txn.version = self._next_version()
            self.deciding.add(entry.key)
            change = Change(None) if txn.change is None else txn.change
            txn.record = changed(entry.record, change, txn.version, self._now)
        if txn.record is None:
            raise InvariantViolation(f"{entry.key} has a version for nothing")
        if second is None:
            if not txn.written:
                txn.without_mirror = True  # whatever the ring becomes: Redis may have it already
                txn.become(TxnState.WRITING)
                txn.exposed = txn.exposed or txn.version
                return self._put(entry, txn, txn.record, None)
        else:
            places = tuple(sorted((self._context.me, second)))
            if not self._is_marked(entry, txn, places):
                return self._set_mark(entry, txn, places)
            if txn.source == self._context.me and not txn.mirrored:
                txn.become(TxnState.MIRRORING)
                txn.mirror = second
                txn.exposed = txn.exposed or txn.version
                self._send_mirror(entry, txn)
                self.timers.set(("mirror", entry.key), self._now + self._options.mirror_wait_ms)
                return _Step.WAIT
        if not self._may_finish(entry, txn):
            return _Step.WAIT
        self._commit(entry, txn, txn.record)
        return _Step.DONE

    def _is_marked(self, entry: Entry, txn: Txn, places: tuple[PeerId, ...]) -> bool:
        """Whether Redis says that just these places have what comes after its own record."""
        mark = entry.mark
        return (
            mark is not None
            and mark.places == places
            and (entry.dirty or mark.version == txn.version)
        )

    def _set_mark(self, entry: Entry, txn: Txn, places: tuple[PeerId, ...]) -> _Step:
        """Have Redis write the record of before, unless it has it, and the next generation."""
        if txn.record is None:
            raise InvariantViolation(f"{entry.key} is marked for nothing")
        if txn.state is TxnState.MARKING and txn.mark is not None and txn.mark.places == places:
            return self._put(entry, txn, entry.record if entry.dirty else None, txn.mark)
        if txn.mark is not None or (entry.mark is not None and entry.mark.version == txn.version):
            # Other places than those of an attempt that Redis may yet see: another generation.
            txn.version = self._next_version()
            txn.record = msgspec.structs.replace(txn.record, version=txn.version)
            txn.mirrored = False
        if txn.version is None:
            raise InvariantViolation(f"{entry.key} is marked without a version")
        txn.become(TxnState.MARKING)
        txn.mark = Mark(txn.version, places)
        return self._put(entry, txn, entry.record if entry.dirty else None, txn.mark)

    def _commit(self, entry: Entry, txn: Txn, record: Record) -> None:
        """The one moment at which a write of a client takes effect."""
        entry.lost = False
        self._set(entry, record, dirty=not txn.written, confirmed=txn.written or txn.mirrored)
        if txn.written:
            self._tell_clean(entry)
            entry.mark = None
        else:
            at_ms = self._options.write_back_at_ms(self._now, entry.dirty_since_ms)
            self.timers.set(("flush", entry.key), max(self._now, at_ms))
        for holder in list(entry.holders()):
            self._forget(entry, holder)
        if txn.kind is TxnKind.EXPIRY:
            return
        committed = Committed(record.version, record.fences, not txn.written)
        if self.leases.find(txn.source, txn.lease) is not None:
            self._own(entry, txn, committed)
            self._reply(txn, committed)

    def _is_full(self, txn: Txn) -> bool:
        """Whether too much is dirty; then the oldest is written back."""
        size = 0 if txn.change is None or txn.change.value is None else txn.change.size
        if not size or self.dirty_bytes + size <= self._options.max_dirty_bytes:
            return False
        while size > 0 and self.unwritten:
            entry = self._unwritten_first()
            size -= entry.record.size
            self.timers.soonest(("flush", entry.key), self._now)
        return True

    # --- Write-backs and recovery --------------------------------------------------------------

    def _write_back(self, entry: Entry, txn: Txn) -> _Step:
        copy = txn.copy
        owns = entry.owner == txn.source and entry.owner_grant == txn.grant
        if copy is not None and owns and copy.version > entry.record.version:
            self._set(entry, received(copy, self._now), dirty=True, confirmed=False)
        if entry.dirty:
            return self._secure(entry, txn)
        self._reply(txn, WrittenBack())
        return _Step.DONE

    def _recovered(self, entry: Entry) -> _Step:
        """What others kept has been looked at: write it back, or let them drop it."""
        if entry.lost:
            entry.offers.clear()
            return _Step.DONE
        if entry.dirty:
            self.timers.soonest(("flush", entry.key), self._now)
        else:
            # What is newer all the same never took effect, or was given up with a lease.
            for peer, (offered, _) in entry.offers.items():
                if offered.version > entry.record.version and peer in self._context.peers:
                    self._context.send(peer, Cleaned(entry.key, offered.version))
            self._tell_clean(entry)
        return _Step.DONE

    def _tell_clean(self, entry: Entry) -> None:
        """Redis has the record: who kept a copy for safety need not any more."""
        places = () if entry.mark is None else entry.mark.places
        told = {*places, *entry.offers, *([] if entry.owner is None else [entry.owner])}
        successor = self._context.successor_of(entry.key)
        if successor is not None:
            told.add(successor)  # a mirror that was too late may be there
        for peer in sorted(told & self._context.peers):
            self._context.send(peer, Cleaned(entry.key, entry.record.version))
        entry.offers.clear()

    # --- Redis --------------------------------------------------------------------------------

    def _request(self, key: str, purpose: str, version: Version) -> int:
        self._last_request += 1
        self._requests[self._last_request] = (key, purpose, version)
        return self._last_request

    def _load(self, entry: Entry, txn: Txn) -> _Step:
        """Read the key. Only with the node lease: see `_read_again`."""
        if not self._may_finish(entry, txn):
            return _Step.WAIT
        txn.become(TxnState.LOADING)
        if self._now < entry.retry_ms:
            self.timers.soonest(("txn", entry.key), entry.retry_ms)
            return _Step.WAIT
        txn.request = self._request(entry.key, "load", ABSENT)
        self._context.effects.append(RedisLoad(txn.request, entry.key, self._context.epoch))
        return _Step.WAIT

    def _put(self, entry: Entry, txn: Txn, record: Record | None, mark: Mark | None) -> _Step:
        """Write the record of before and a mark, or the new record."""
        if self._now < entry.retry_ms:
            self.timers.soonest(("txn", entry.key), entry.retry_ms)
            return _Step.WAIT
        if entry.forgotten:
            txn.request = self._read_again(entry, "txn")
            return _Step.WAIT
        version = ABSENT if record is None else record.version
        txn.request = self._request(entry.key, "put", version)
        copy = None if record is None else record.copy(self._now)
        self._context.effects.append(
            RedisPut(txn.request, entry.key, self._context.epoch, copy, mark)
        )
        return _Step.WAIT

    def _secure(self, entry: Entry, txn: Txn) -> _Step:
        """Write the record back before the transaction goes on."""
        txn.become(TxnState.SECURING)
        self._flush(entry)
        return _Step.WAIT

    def _flush(self, entry: Entry) -> None:
        """Begin to write the record back, now or later, unless that is under way."""
        txn = entry.txn
        if not (entry.dirty or entry.stale_mark != ABSENT) or entry.flush:
            return
        if txn is not None and txn.state is not TxnState.SECURING and txn.version is not None:
            self.timers.soonest(("flush", entry.key), self._now + self._options.redis_retry_ms)
            return
        if self._now < entry.retry_ms:
            self.timers.soonest(("flush", entry.key), entry.retry_ms)
            return
        if entry.forgotten:
            entry.flush = self._read_again(entry, "flush")
            self._file(entry)
            return
        version = entry.record.version if entry.dirty else ABSENT
        entry.flush = self._request(entry.key, "flush", version)
        self._file(entry)
        copy = entry.record.copy(self._now) if entry.dirty else None
        self._context.effects.append(
            RedisPut(entry.flush, entry.key, self._context.epoch, copy, None, entry.stale_mark)
        )

    def _read_again(self, entry: Entry, timer: str) -> int:
        """Have Redis know of a key, and of this home, that it has forgotten; return the request.

        Who holds the node lease is the only home and knows the key still. Anybody else may have
        missed that it was written, and deleted, since: 0, until the lease lasts or is gone.
        """
        if not self._context.holds_node_lease():
            again_ms = self._now + self._options.redis_retry_ms
            self.timers.soonest((timer, entry.key), again_ms)
            return 0
        request = self._request(entry.key, "load", ABSENT)
        self._context.effects.append(RedisLoad(request, entry.key, self._context.epoch))
        return request

    def loaded(self, event: Loaded) -> None:
        """Redis has read a key."""
        entry, txn = self._finish_request(event.request)
        if entry is None:
            return
        if entry.flush == event.request:
            entry.flush = 0
            self._file(entry)
            self._was_read_again(entry)
            self._flush(entry)
            return
        if txn is None or txn.request != event.request:
            return
        txn.request = 0
        if entry.forgotten:
            self._was_read_again(entry)
            if txn.state is not TxnState.LOADING:
                self._run(entry)
                return
        record = received(event.copy, self._now)
        if entry.loaded and not entry.lost and record.version == entry.record.version:
            entry.record = Record(
                record.version, record.value, entry.record.expires_ms, record.fences
            )
            entry.has_value = True
        else:
            self._recover(entry, event, record)
        self._run(entry)

    def _recover(self, entry: Entry, event: Loaded, record: Record) -> None:
        survivor = choose_survivor(event, entry.offers.values(), self._handover.reporters)
        entry.loaded, entry.lost = True, survivor.lost
        if entry.lost:
            entry.offers.clear()  # none of them is the newest
        if survivor.record is None:
            self._set(entry, record, dirty=False, confirmed=True)
            if event.mark is not None and not survivor.lost:
                # Who says so may die, and nobody else can: Redis has to know.
                entry.stale_mark = event.mark.version
                self.timers.soonest(("flush", entry.key), self._now)
        else:
            self._set(entry, survivor.record, dirty=True, confirmed=survivor.in_two)
            self.timers.soonest(("flush", entry.key), self._now)
        entry.mark = None

    def _was_read_again(self, entry: Entry) -> None:
        # By whom? Who was stopped meanwhile is not the home any more.
        entry.forgotten = not self._context.holds_node_lease()

    def forgotten(self, event: Forgotten) -> None:
        """Redis knows nothing of the key any more, so it did nothing."""
        entry, txn = self._finish_request(event.request)
        if entry is None:
            return
        entry.forgotten = True
        if entry.flush == event.request:
            entry.flush = 0
            self._file(entry)
            self._flush(entry)
        elif txn is not None and txn.request == event.request:
            txn.request = 0
            self._run(entry)

    def stored(self, event: Stored) -> None:
        """Redis has what it was to write."""
        version = self._requests.get(event.request, ("", "", ABSENT))[2]
        entry, txn = self._finish_request(event.request)
        if entry is None:
            return
        if entry.flush == event.request:
            entry.flush = 0
            entry.stale_mark = ABSENT
            self._file(entry)
            self._is_in_redis(entry, version)
        elif txn is not None and txn.request == event.request:
            txn.request = 0
            if txn.mark is None:
                txn.written = True
            else:
                self._is_in_redis(entry, version)
                entry.mark, txn.mark, txn.unsure = txn.mark, None, True
        self._run(entry)

    def _is_in_redis(self, entry: Entry, version: Version) -> None:
        if entry.dirty and entry.record.version == version:
            self._tell_clean(entry)
            self._set(entry, entry.record, dirty=False, confirmed=True)
            entry.mark = None
            entry.owner_commit = self._as_clean(entry.owner_commit)

    def _as_clean(self, committed: Committed | None) -> Committed | None:
        if committed is None:
            return None
        return Committed(committed.version, committed.fences, False)

    def failed(self, event: RedisFailed) -> None:
        """Redis did not do it, or nobody knows whether it did: it is asked again, later."""
        entry, txn = self._finish_request(event.request)
        if entry is None:
            return
        retry_ms = self._now + self._options.redis_retry_ms
        if entry.flush == event.request or not event.full:  # reads need no room
            entry.retry_ms = retry_ms
        if entry.flush == event.request:
            entry.flush = 0
            self._file(entry)
            entry.mark = None  # it may come yet, and end the mark
            self.timers.set(("flush", entry.key), retry_ms)
        elif txn is not None and txn.request == event.request:
            txn.request = 0
            self._txn_failed(entry, txn, event)
            if txn.unsure:
                self.timers.set(("txn", entry.key), retry_ms)
                return
        self._run(entry)

    def _txn_failed(self, entry: Entry, txn: Txn, event: RedisFailed) -> None:
        deletes = txn.change is not None and txn.change.value is None
        if txn.state is TxnState.LOADING:
            self._deny_all(entry, txn, full=event.full)
        elif event.full and deletes and not txn.without_mirror:
            # There is no room for a mark, but there is for a deletion.
            txn.without_mirror, txn.mark = True, None
        elif event.undone and not txn.unsure:
            self._deny_all(entry, txn, full=event.full)
        else:
            txn.unsure = True

    def _deny_all(self, entry: Entry, txn: Txn, *, full: bool) -> None:
        """Redis cannot be read or written: nothing was done for anybody who waits."""
        stays = {TxnKind.RECOVERY}
        if full and txn.state is not TxnState.LOADING:
            stays.add(TxnKind.READ)  # needs no room
        waiting = [txn, *entry.queue]
        self._end_txn(entry)
        entry.queue.clear()
        for one in waiting:
            if one.kind in stays:
                one.state = None
                entry.queue.append(one)
            else:
                self._deny(one, Refused(Code.REDIS_FULL if full else Code.REDIS_UNAVAILABLE))

    def _finish_request(self, request: int) -> tuple[Entry | None, Txn | None]:
        known = self._requests.pop(request, None)
        entry = None if known is None else self.entries.get(known[0])
        if entry is None or (entry.flush != request and entry.txn is None):
            return None, None
        return entry, entry.txn

    # --- Messages to holders ------------------------------------------------------------------

    def _ask_to_yield(self, entry: Entry, txn: Txn, holders: set[PeerId]) -> None:
        txn.waiting = holders
        for holder in holders:
            lease = self.leases.by_holder.get(holder)
            if lease is not None:
                lease.unacknowledged.add((txn.id, entry.key))
        self._send_yields(entry, txn)

    def _send_yields(self, entry: Entry, txn: Txn) -> None:
        kind: Callable[..., Snoop | Invalidate]
        kind = Snoop if txn.state is TxnState.SNOOPING else Invalidate
        for holder in sorted(txn.waiting):
            lease = self.leases.by_holder.get(holder)
            if lease is None:
                raise InvariantViolation(f"{holder} holds {entry.key} without a lease")
            grant = entry.grant_of(holder)
            commit = entry.owner_commit if holder == entry.owner else None
            self._context.send(holder, kind(lease.number, txn.id, entry.key, grant, commit))
        self.timers.set(("txn", entry.key), self._now + self._options.resend_ms)

    def _send_mirror(self, entry: Entry, txn: Txn) -> None:
        if txn.mirror is not None and txn.record is not None:
            copy = txn.record.copy(self._now)
            self._context.send(txn.mirror, Mirror(txn.id, entry.key, copy))
            self.timers.set(("txn", entry.key), self._now + self._options.resend_ms)

    def _refuse(self, entry: Entry, txn: Txn, refusal: Refused) -> _Step:
        """Refuse for what the key is, which is to say something of it, as a read does."""
        if not self._may_finish(entry, txn):
            return _Step.WAIT
        return self._deny(txn, refusal)

    def _deny(self, txn: Txn, refusal: Refused) -> _Step:
        self._reply(txn, Denied(refusal.code, refusal.version, refusal.newest))
        return _Step.DONE

    def _reply(self, txn: Txn, result: Result) -> None:
        lease = self.leases.find(txn.source, txn.lease)
        if lease is not None and txn.number in lease.answers:
            lease.answers[txn.number] = (txn.key, result)
            self._send_reply(lease, txn.number, txn.key, result)

    def _send_reply(self, lease: GrantedLease, number: int, key: str, result: Result) -> None:
        lease_ms = 0 if self._context.retired else self.leases.renew(lease, self._now)
        self._context.send(lease.holder, Reply(lease.number, number, lease_ms, key, result))

    # --- Holders ------------------------------------------------------------------------------

    def _own(self, entry: Entry, txn: Txn, committed: Committed | None) -> None:
        entry.owner, entry.owner_grant, entry.owner_commit = txn.source, txn.number, committed
        self._lease_of(txn.source).keys.add(entry.key)

    def _share(self, entry: Entry, holder: PeerId, grant: int) -> None:
        entry.sharers[holder] = grant
        self._lease_of(holder).keys.add(entry.key)

    def _lease_of(self, holder: PeerId) -> GrantedLease:
        lease = self.leases.by_holder.get(holder)
        if lease is None:
            raise InvariantViolation(f"{holder} has no lease to hold anything under")
        return lease

    def _forget(self, entry: Entry, holder: PeerId) -> None:
        entry.forget(holder)
        lease = self.leases.by_holder.get(holder)
        if lease is not None:
            lease.keys.discard(entry.key)

    def expire_leases(self) -> None:
        """Go on without the holders whose leases have certainly ended. Before anything else."""
        for lease in list(self.leases.by_holder.values()):
            if lease.has_ended(self._now):
                self._lapse(lease.holder)

    def _lapse(self, holder: PeerId) -> None:
        lease = self.leases.by_holder.pop(holder, None)
        if lease is None:
            return
        for key in sorted(lease.keys):
            entry = self.entries.get(key)
            if entry is None:
                continue
            was_owner = entry.owner == holder
            entry.forget(holder)
            if was_owner and entry.dirty:
                # Whether it ever heard of the newest value is not known.
                entry.confirmed = False
                self.timers.soonest(("flush", key), self._now)
            elif was_owner and self._mode(entry) is Durability.LOCAL:
                entry.loaded = entry.has_value = False
            if entry.txn is not None:
                entry.txn.waiting.discard(holder)
            self._run(entry)

    # --- Ring ---------------------------------------------------------------------------------

    def give_up_moved(self, *, continuous: bool) -> None:
        """A new ring: first, give up what has moved."""
        context = self._context
        for entry in list(self.entries.values()):
            if not continuous or context.home_of(entry.key) != context.me:
                self._give_up(entry)
        if not continuous and not context.retired:  # then it has yet to say what became of writes
            self.leases.by_holder.clear()

    def go_on(self) -> None:
        """A new ring: then, go on with the rest, under the new epoch."""
        context = self._context
        if context.left_have_ended:
            self.lapse_those_who_left()
        for entry in list(self.entries.values()):
            txn = entry.txn
            places = () if entry.mark is None else entry.mark.places
            if entry.dirty and not context.peers.issuperset(places):
                self.timers.soonest(("flush", entry.key), self._now)
            if txn is not None and txn.waiting:
                self._send_yields(entry, txn)
            elif txn is not None and txn.mirror is not None:
                self._mirror_is_silent(entry, txn)

    def lapse_those_who_left(self) -> None:
        """They have certainly no lease of any kind any more."""
        for holder in sorted(self.leases.by_holder.keys() - self._context.peers):
            self._lapse(holder)

    def _give_up(self, entry: Entry) -> None:
        del self.entries[entry.key]
        self._parked.pop(entry.key, None)
        for name in ("txn", "flush", "mirror"):
            self.timers.cancel((name, entry.key))
        self.unwritten.pop(entry.key, None)
        self.flushing.discard(entry.key)
        self.deciding.discard(entry.key)
        if entry.dirty:
            self.dirty_bytes -= entry.record.size
            local = self._mode(entry) is Durability.LOCAL
            kept = Kept(record=entry.record, since_ms=self._now, unmarked=local)
            self._kept.keep(entry.key, kept)
        for holder in list(entry.holders()):
            self._forget(entry, holder)
        for txn in (entry.txn, *entry.queue):
            lease = None if txn is None else self.leases.find(txn.source, txn.lease)
            if txn is None or lease is None or txn.number not in lease.answers:
                continue
            if txn.kind is TxnKind.WRITE:
                self._reply(txn, self._given_up(txn))
            else:
                del lease.answers[txn.number]
        for lease in self.leases.by_holder.values():
            if entry.txn is not None:
                lease.unacknowledged.discard((entry.txn.id, entry.key))

    def _given_up(self, txn: Txn) -> Result:
        """Return what is known of a write that was not committed and will not be, here."""
        if txn.exposed is None:
            return GivenUp()
        if txn.exposed == txn.version:
            return GivenUp(txn.version)
        return Denied(Code.UNKNOWN, ABSENT, 0)  # under which of the two?

    def retire(self) -> None:
        """This node leaves: whoever still waits is to ask the next home."""
        for entry in list(self.entries.values()):
            self._give_up(entry)

    def _mirror_is_silent(self, entry: Entry, txn: Txn) -> None:
        """The successor does not answer: Redis takes its place for this write."""
        txn.mirror = None
        txn.without_mirror = txn.unsure = True
        self._run(entry)

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        for kind, key in self.timers.due(self._now):
            entry = self.entries.get(key)
            if entry is None:
                continue
            txn = entry.txn
            if kind == "flush":
                self._flush(entry)
            elif txn is None:
                self._run(entry)
            elif kind == "mirror":
                if txn.mirror is not None:
                    self._mirror_is_silent(entry, txn)
            elif txn.waiting:
                self._send_yields(entry, txn)
            elif txn.mirror is not None:
                self._send_mirror(entry, txn)
            else:
                self._run(entry)

    def next_tick_ms(self) -> int | None:
        """Return when something is due next."""
        times = [lease.ends_ms for lease in self.leases.by_holder.values()]
        due = self.timers.next_ms()
        return min(times if due is None else [*times, due], default=None)

    def write_back_more(self) -> None:
        """Begin to write back dirty records, as many as may be under way at once."""
        room = self._options.write_backs_at_once - len(self.flushing)
        for _ in range(min(room, len(self.unwritten))):
            self._flush(self._unwritten_first())

    def _unwritten_first(self) -> Entry:
        """Return whose turn it is to be written back; it is the last to have another one."""
        key = next(iter(self.unwritten))
        self.unwritten.move_to_end(key)
        return self.entries[key]

    @property
    def is_clean(self) -> bool:
        """Whether Redis has everything."""
        return not (self.unwritten or self.flushing or self.deciding)

    @property
    def is_mirrored(self) -> bool:
        """Whether every value that Redis has not is in two places, as far as is known here."""
        return all(self._is_safe(entry) for entry in self.entries.values()) and not any(
            self._context.home_of(key) == self._context.me and not self._is_loaded(key)
            for key, _ in self._kept.items()
        )

    def _is_safe(self, entry: Entry) -> bool:
        """Whether the death of one node leaves the record, or whatever Redis has is as new.

        An owner that has not heard of its own write yet has acknowledged it to nobody.
        """
        if not entry.dirty:
            return entry.stale_mark == ABSENT
        mark, peers = entry.mark, self._context.peers
        in_two = entry.confirmed or entry.owner is not None
        return in_two and mark is not None and peers.issuperset(mark.places)

    def _is_loaded(self, key: str) -> bool:
        """Whether it is known which copy of the key is the newest."""
        entry = self.entries.get(key)
        return entry is not None and entry.loaded

    # --- Helpers ------------------------------------------------------------------------------

    @property
    def _now(self) -> int:
        return self._context.now_ms

    def _mode(self, entry: Entry) -> Durability:
        return self._options.durability_of(entry.key)

    def _entry(self, key: str) -> Entry:
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry(key=key)
        return entry

    def _next_txn(self) -> int:
        self._last_txn += 1
        return self._last_txn

    def _next_version(self) -> Version:
        self._counter += 1
        return Version(self._context.epoch, self._counter)

    def _set(self, entry: Entry, record: Record, *, dirty: bool, confirmed: bool) -> None:
        if entry.dirty:
            self.dirty_bytes -= entry.record.size
        entry.record, entry.has_value = record, True
        if dirty and not entry.dirty:
            entry.dirty_since_ms = self._now
        entry.dirty, entry.confirmed = dirty, confirmed
        if dirty:
            self.dirty_bytes += record.size
        self._file(entry)

    def _file(self, entry: Entry) -> None:
        """Keep in mind whether it has to be written back, and whether it is being."""
        if entry.flush:
            self.flushing.add(entry.key)
        else:
            self.flushing.discard(entry.key)
        if entry.dirty and not entry.flush:
            self.unwritten.setdefault(entry.key)
        else:
            self.unwritten.pop(entry.key, None)
