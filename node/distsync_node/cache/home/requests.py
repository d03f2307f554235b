"""What a home asks of Redis, and what comes of it.

It guarantees:

- A key has at most one request of its transaction and one write-back under way. An answer to any
  other is not looked at.
- What Redis may have done, or may yet do, is asked for again until it has been done; it is not
  denied to anybody any more.
- A key that Redis has forgotten is written only after who holds the node lease has read it again.

Requests wait for `retry_ms` after a failure, by the timers `txn` and `flush` of their key.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import Forgotten, Loaded, Mark, RedisFailed, Stored
from distsync_node.cache.handover import Handover
from distsync_node.cache.home.authority import Authority
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.entry import Entry, Step, Txn
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.judging import choose_survivor
from distsync_node.cache.messages import Committed
from distsync_node.cache.tables import TxnKind, TxnState
from distsync_node.cache.types import ABSENT, Code, Record, Refused, Version, received


class Requests:
    """Requests of all keys. What takes an answer returns the entry that can go on, if one can."""

    def __init__(
        self,
        context: Context,
        handover: Handover,
        directory: Directory,
        authority: Authority,
        outgoing: Outgoing,
    ) -> None:
        self._context = context
        self._options = context.options
        self._handover = handover
        self._directory = directory
        self._timers = directory.timers
        self._authority = authority
        self._outgoing = outgoing
        self._last_request = 0
        self._under_way: dict[int, tuple[str, Version]] = {}  # key, version written

    # --- Asked by a transaction ---------------------------------------------------------------

    def load(self, entry: Entry, txn: Txn) -> Step:
        """Read the key. Only with the node lease: see `_read_again`."""
        if not self._authority.may_finish(entry, txn):
            return Step.WAIT
        txn.become(TxnState.LOADING)
        if self._context.now_ms < entry.retry_ms:
            self._timers.soonest(("txn", entry.key), entry.retry_ms)
            return Step.WAIT
        txn.request = self._number(entry.key, ABSENT)
        self._context.effects.append(RedisLoad(txn.request, entry.key, self._context.epoch))
        return Step.WAIT

    def put(self, entry: Entry, txn: Txn, record: Record | None, mark: Mark | None) -> Step:
        """Write the record of before and a mark, or the new record."""
        if self._context.now_ms < entry.retry_ms:
            self._timers.soonest(("txn", entry.key), entry.retry_ms)
            return Step.WAIT
        if entry.forgotten:
            txn.request = self._read_again(entry, "txn")
            return Step.WAIT
        version = ABSENT if record is None else record.version
        txn.request = self._number(entry.key, version)
        copy = None if record is None else record.copy(self._context.now_ms)
        self._context.effects.append(
            RedisPut(txn.request, entry.key, self._context.epoch, copy, mark)
        )
        return Step.WAIT

    def secure(self, entry: Entry, txn: Txn) -> Step:
        """Write the record back before the transaction goes on."""
        txn.become(TxnState.SECURING)
        self.flush(entry)
        return Step.WAIT

    # --- Write-backs --------------------------------------------------------------------------

    def flush(self, entry: Entry) -> None:
        """Begin to write the record back, now or later, unless that is under way."""
        txn, now_ms = entry.txn, self._context.now_ms
        if not (entry.dirty or entry.stale_mark != ABSENT) or entry.flush:
            return
        if txn is not None and txn.state is not TxnState.SECURING and txn.version is not None:
            self._timers.soonest(("flush", entry.key), now_ms + self._options.redis_retry_ms)
            return
        if now_ms < entry.retry_ms:
            self._timers.soonest(("flush", entry.key), entry.retry_ms)
            return
        if entry.forgotten:
            entry.flush = self._read_again(entry, "flush")
            self._directory.file(entry)
            return
        version = entry.record.version if entry.dirty else ABSENT
        entry.flush = self._number(entry.key, version)
        self._directory.file(entry)
        copy = entry.record.copy(now_ms) if entry.dirty else None
        self._context.effects.append(
            RedisPut(entry.flush, entry.key, self._context.epoch, copy, None, entry.stale_mark)
        )

    def _end_flush(self, entry: Entry) -> None:
        entry.flush = 0
        self._directory.file(entry)

    def _read_again(self, entry: Entry, timer: str) -> int:
        """Have Redis know of a key, and of this home, that it has forgotten; return the request.

        Who holds the node lease is the only home and knows the key still. Anybody else may have
        missed that it was written, and deleted, since: 0, until the lease lasts or is gone.
        """
        if not self._context.holds_node_lease():
            again_ms = self._context.now_ms + self._options.redis_retry_ms
            self._timers.soonest((timer, entry.key), again_ms)
            return 0
        request = self._number(entry.key, ABSENT)
        self._context.effects.append(RedisLoad(request, entry.key, self._context.epoch))
        return request

    # --- Answers ------------------------------------------------------------------------------

    def _number(self, key: str, version: Version) -> int:
        self._last_request += 1
        self._under_way[self._last_request] = (key, version)
        return self._last_request

    def _finish(self, request: int) -> tuple[Entry | None, Txn | None, Version]:
        """Return what it was for: its entry, if anything waits for it, and the version written."""
        known = self._under_way.pop(request, None)
        if known is None:
            return None, None, ABSENT
        key, version = known
        entry = self._directory.entries.get(key)
        if entry is None or (entry.flush != request and entry.txn is None):
            return None, None, version
        return entry, entry.txn, version

    def loaded(self, event: Loaded) -> Entry | None:
        """Redis has read a key."""
        entry, txn, _ = self._finish(event.request)
        if entry is None:
            return None
        if entry.flush == event.request:
            self._end_flush(entry)
            self._was_read_again(entry)
            self.flush(entry)
            return None
        if txn is None or txn.request != event.request:
            return None
        txn.request = 0
        if entry.forgotten:
            self._was_read_again(entry)
            if txn.state is not TxnState.LOADING:
                return entry
        record = received(event.copy, self._context.now_ms)
        if entry.loaded and not entry.lost and record.version == entry.record.version:
            entry.record = Record(
                record.version, record.value, entry.record.expires_ms, record.fences
            )
            entry.has_value = True
        else:
            self._recover(entry, event, record)
        return entry

    def _recover(self, entry: Entry, event: Loaded, record: Record) -> None:
        survivor = choose_survivor(event, entry.offers.values(), self._handover.reporters)
        entry.loaded, entry.lost = True, survivor.lost
        if entry.lost:
            entry.offers.clear()  # none of them is the newest
        if survivor.record is None:
            self._directory.set_record(entry, record, dirty=False, confirmed=True)
            if event.mark is not None and not survivor.lost:
                # Who says so may die, and nobody else can: Redis has to know.
                entry.stale_mark = event.mark.version
                self._timers.soonest(("flush", entry.key), self._context.now_ms)
        else:
            self._directory.set_record(
                entry, survivor.record, dirty=True, confirmed=survivor.in_two
            )
            self._timers.soonest(("flush", entry.key), self._context.now_ms)
        entry.mark = None

    def _was_read_again(self, entry: Entry) -> None:
        # By whom? Who was stopped meanwhile is not the home any more.
        entry.forgotten = not self._context.holds_node_lease()

    def forgotten(self, event: Forgotten) -> Entry | None:
        """Redis knows nothing of the key any more, so it did nothing."""
        entry, txn, _ = self._finish(event.request)
        if entry is None:
            return None
        entry.forgotten = True
        if entry.flush == event.request:
            self._end_flush(entry)
            self.flush(entry)
            return None
        if txn is None or txn.request != event.request:
            return None
        txn.request = 0
        return entry

    def stored(self, event: Stored) -> Entry | None:
        """Redis has what it was to write."""
        entry, txn, version = self._finish(event.request)
        if entry is None:
            return None
        if entry.flush == event.request:
            entry.stale_mark = ABSENT
            self._end_flush(entry)
            self._is_in_redis(entry, version)
        elif txn is not None and txn.request == event.request:
            txn.request = 0
            if txn.mark is None:
                txn.written = True
            else:
                self._is_in_redis(entry, version)
                entry.mark, txn.mark, txn.unsure = txn.mark, None, True
        return entry

    def _is_in_redis(self, entry: Entry, version: Version) -> None:
        if entry.dirty and entry.record.version == version:
            self._outgoing.tell_clean(entry)
            self._directory.set_record(entry, entry.record, dirty=False, confirmed=True)
            entry.mark = None
            entry.owner_commit = _as_clean(entry.owner_commit)

    def failed(self, event: RedisFailed) -> Entry | None:
        """Redis did not do it, or nobody knows whether it did: it is asked again, later."""
        entry, txn, _ = self._finish(event.request)
        if entry is None:
            return None
        retry_ms = self._context.now_ms + self._options.redis_retry_ms
        if entry.flush == event.request or not event.full:  # reads need no room
            entry.retry_ms = retry_ms
        if entry.flush == event.request:
            self._end_flush(entry)
            entry.mark = None  # it may come yet, and end the mark
            self._timers.set(("flush", entry.key), retry_ms)
        elif txn is not None and txn.request == event.request:
            txn.request = 0
            self._txn_failed(entry, txn, event)
            if txn.unsure:
                self._timers.set(("txn", entry.key), retry_ms)
                return None
        return entry

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
        self._directory.end_txn(entry)
        entry.queue.clear()
        refusal = Refused(Code.REDIS_FULL if full else Code.REDIS_UNAVAILABLE)
        for one in waiting:
            if one.kind in stays:
                one.state = None
                entry.queue.append(one)
            else:
                self._outgoing.deny(one, refusal)


def _as_clean(committed: Committed | None) -> Committed | None:
    if committed is None:
        return None
    return Committed(committed.version, committed.fences, False)
