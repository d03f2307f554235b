"""A write at its home: where its value has to be first, and the moment at which it takes effect.

It guarantees:

- Nothing is committed before the value is where its durability says: in two processes, and Redis
  marks the key with both; or in Redis. When in doubt, in Redis.
- Nobody else holds the key when a write of it is committed, and the writer owns it from then on.
- Other places are another generation: no two marks of one version name different places.
"""

from __future__ import annotations

import msgspec

from distsync_node.cache.context import Context
from distsync_node.cache.events import Mark
from distsync_node.cache.home.authority import Authority
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.entry import Entry, Step, Txn
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.home.requests import Requests
from distsync_node.cache.judging import changed
from distsync_node.cache.messages import Committed
from distsync_node.cache.tables import TxnKind, TxnState
from distsync_node.cache.types import Change, Code, Durability, PeerId, Record, Refused
from distsync_node.errors import InvariantViolation


class Commits:
    """The end of each transaction that writes, once nobody but the writer holds the key."""

    def __init__(
        self,
        context: Context,
        directory: Directory,
        authority: Authority,
        outgoing: Outgoing,
        requests: Requests,
    ) -> None:
        self._context = context
        self._options = context.options
        self._directory = directory
        self._timers = directory.timers
        self._authority = authority
        self._outgoing = outgoing
        self._requests = requests

    def make_durable(self, entry: Entry, txn: Txn) -> Step:
        """See to it that the new value is where its durability says; then commit."""
        second = None if txn.without_mirror else self._second_place(entry, txn)
        if entry.flush:
            # Which version Redis has is open until that is answered.
            return self._requests.secure(entry, txn)
        if txn.version is None:
            if second is not None and self._is_full(txn):
                self._outgoing.deny(txn, Refused(Code.LIMIT))
                return Step.DONE
            txn.version = self._directory.next_version()
            self._directory.deciding.add(entry.key)
            change = Change(None) if txn.change is None else txn.change
            txn.record = changed(entry.record, change, txn.version, self._context.now_ms)
        if txn.record is None:
            raise InvariantViolation(f"{entry.key} has a version for nothing")
        if second is None:
            if not txn.written:
                return self._write(entry, txn, txn.record)
        else:
            places = tuple(sorted((self._context.me, second)))
            if not self._is_marked(entry, txn, places):
                return self._set_mark(entry, txn, places)
            if txn.source == self._context.me and not txn.mirrored:
                return self._mirror(entry, txn, second)
        if not self._authority.may_finish(entry, txn):
            return Step.WAIT
        self._commit(entry, txn, txn.record)
        return Step.DONE

    def _second_place(self, entry: Entry, txn: Txn) -> PeerId | None:
        """Return who has the value beside this node; None: Redis must have it."""
        mirrored = self._directory.mode(entry) is Durability.MIRRORED
        if not mirrored or self._context.draining or entry.lost:
            return None
        me, peers = self._context.me, self._context.peers
        second = self._context.successor_of(entry.key) if txn.source == me else txn.source
        return second if second in peers else None

    def _is_full(self, txn: Txn) -> bool:
        """Whether too much is dirty; then the oldest is written back."""
        directory = self._directory
        size = 0 if txn.change is None or txn.change.value is None else txn.change.size
        if not size or directory.dirty_bytes + size <= self._options.max_dirty_bytes:
            return False
        while size > 0 and directory.unwritten:
            entry = directory.first_unwritten()
            size -= entry.record.size
            self._timers.soonest(("flush", entry.key), self._context.now_ms)
        return True

    def _write(self, entry: Entry, txn: Txn, record: Record) -> Step:
        """Have Redis write the record itself."""
        txn.without_mirror = True  # whatever the ring becomes: Redis may have it already
        txn.become(TxnState.WRITING)
        txn.exposed = txn.exposed or txn.version
        return self._requests.put(entry, txn, record, None)

    def _mirror(self, entry: Entry, txn: Txn, successor: PeerId) -> Step:
        """Have the successor keep the record, or for want of an answer Redis."""
        txn.become(TxnState.MIRRORING)
        txn.mirror = successor
        txn.exposed = txn.exposed or txn.version
        self._outgoing.send_mirror(entry, txn)
        patience_ms = self._options.mirror_wait_ms
        self._timers.set(("mirror", entry.key), self._context.now_ms + patience_ms)
        return Step.WAIT

    def _is_marked(self, entry: Entry, txn: Txn, places: tuple[PeerId, ...]) -> bool:
        """Whether Redis says that just these places have what comes after its own record."""
        mark = entry.mark
        return (
            mark is not None
            and mark.places == places
            and (entry.dirty or mark.version == txn.version)
        )

    def _set_mark(self, entry: Entry, txn: Txn, places: tuple[PeerId, ...]) -> Step:
        """Have Redis write the record of before, unless it has it, and the next generation."""
        if txn.record is None:
            raise InvariantViolation(f"{entry.key} is marked for nothing")
        before = entry.record if entry.dirty else None
        if txn.state is TxnState.MARKING and txn.mark is not None and txn.mark.places == places:
            return self._requests.put(entry, txn, before, txn.mark)
        if txn.mark is not None or (entry.mark is not None and entry.mark.version == txn.version):
            # Other places than those of an attempt that Redis may yet see: another generation.
            txn.version = self._directory.next_version()
            txn.record = msgspec.structs.replace(txn.record, version=txn.version)
            txn.mirrored = False
        if txn.version is None:
            raise InvariantViolation(f"{entry.key} is marked without a version")
        txn.become(TxnState.MARKING)
        txn.mark = Mark(txn.version, places)
        return self._requests.put(entry, txn, before, txn.mark)

    def _commit(self, entry: Entry, txn: Txn, record: Record) -> None:
        """The one moment at which a write of a client takes effect."""
        directory = self._directory
        entry.lost = False
        directory.set_record(
            entry, record, dirty=not txn.written, confirmed=txn.written or txn.mirrored
        )
        if txn.written:
            self._outgoing.tell_clean(entry)
            entry.mark = None
        else:
            now_ms = self._context.now_ms
            at_ms = self._options.write_back_at_ms(now_ms, entry.dirty_since_ms)
            self._timers.set(("flush", entry.key), max(now_ms, at_ms))
        for holder in list(entry.holders()):
            directory.forget(entry, holder)
        if txn.kind is TxnKind.EXPIRY:
            return
        committed = Committed(record.version, record.fences, not txn.written)
        if directory.leases.find(txn.source, txn.lease) is not None:
            directory.own(entry, txn, committed)
            self._outgoing.reply(txn, committed)
