"""The transactions of a home: one a key at a time, the rest in a FIFO.

A transaction is driven by level, not by edge: `_step` looks at what is still missing, asks for it
and returns; whatever comes leads back to it. Which states may follow which is in `tables.py`.

It guarantees:

- Who reads is given a copy only when no other node owns the key, and only of a value that is in
  Redis or known to be in two places; who is granted ownership, or writes, only when no other node
  holds a copy.
- What has expired is deleted before anything else is read or written.
- When nothing is under way, only what Redis does not know is remembered.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.home.authority import Authority
from distsync_node.cache.home.commits import Commits
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.entry import Entry, Step, Txn
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.home.requests import Requests
from distsync_node.cache.judging import judge
from distsync_node.cache.messages import Granted, WrittenBack
from distsync_node.cache.tables import TxnKind, TxnState
from distsync_node.cache.types import Change, Code, Durability, Record, Refused, received


class Transactions:
    """Runs what waits in the entries; `run` is called whenever something may have come."""

    def __init__(
        self,
        context: Context,
        directory: Directory,
        authority: Authority,
        outgoing: Outgoing,
        requests: Requests,
        commits: Commits,
    ) -> None:
        self._context = context
        self._directory = directory
        self._leases = directory.leases
        self._timers = directory.timers
        self._authority = authority
        self._outgoing = outgoing
        self._requests = requests
        self._commits = commits

    def run(self, entry: Entry) -> None:
        """Go on with the key as far as it goes now."""
        while True:
            if entry.txn is None:
                entry.txn = self._next(entry)
                if entry.txn is None:
                    self._rest(entry)
                    return
            match self._step(entry, entry.txn):
                case Step.WAIT:
                    return
                case Step.DONE:
                    entry.txn.become(TxnState.DONE)
                    self._directory.end_txn(entry)
                case Step.AGAIN:
                    pass

    def resume(self) -> None:
        """The takeover is complete, or the node lease lasts again."""
        for key in self._authority.take_waiting():
            entry = self._directory.entries.get(key)
            if entry is not None:
                self.run(entry)

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
        lease = self._leases.find(txn.source, txn.lease)
        if lease is None or txn.number < lease.floor:
            return False
        return entry.grant_of(txn.source) < txn.number

    def _rest(self, entry: Entry) -> None:
        """Nothing is under way: remember no more than has to be."""
        if entry.is_idle:
            self._directory.entries.pop(entry.key, None)
            self._authority.forget(entry.key)
            self._timers.cancel(("txn", entry.key))
            self._timers.cancel(("flush", entry.key))
        elif entry.has_value and not entry.dirty:
            value = None if entry.record.value is None else b""
            entry.has_value = entry.record.value is None
            entry.record = Record(
                entry.record.version, value, entry.record.expires_ms, entry.record.fences
            )

    def _step(self, entry: Entry, txn: Txn) -> Step:
        if not self._authority.may_serve(entry, txn):
            return Step.WAIT
        if txn.request or txn.waiting or txn.mirror is not None:
            return Step.WAIT
        if txn.version is not None:
            return self._commits.make_durable(entry, txn)
        if not entry.loaded or (entry.lost and entry.offers and txn.kind is TxnKind.RECOVERY):
            return self._requests.load(entry, txn)
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

    def _is_conditional(self, txn: Txn) -> bool:
        return txn.change is None or txn.change.if_version is not None

    def _refuse(self, entry: Entry, txn: Txn, refusal: Refused) -> Step:
        """Refuse for what the key is, which is to say something of it, as a read does."""
        if not self._authority.may_finish(entry, txn):
            return Step.WAIT
        self._outgoing.deny(txn, refusal)
        return Step.DONE

    # --- Time to live -------------------------------------------------------------------------

    def _is_expired(self, entry: Entry) -> bool:
        now_ms = self._context.now_ms
        return not self._is_behind(entry) and not entry.lost and entry.record.is_expired(now_ms)

    def _expire(self, entry: Entry, txn: Txn) -> Step:
        """First delete what has expired, as a transaction of its own."""
        txn.state = None
        entry.queue.insert(0, txn)
        entry.txn = Txn(
            kind=TxnKind.EXPIRY,
            key=entry.key,
            source=self._context.me,
            id=self._directory.next_txn(),
            change=Change(None),
        )
        return Step.AGAIN

    # --- Reads --------------------------------------------------------------------------------

    def _read(self, entry: Entry, txn: Txn) -> Step:
        if entry.owner == txn.source:
            return self._owner_came_empty(entry, txn)
        if entry.owner is not None:
            txn.become(TxnState.SNOOPING)
            self._outgoing.ask_to_yield(entry, txn, {entry.owner})
            return Step.WAIT
        if not entry.has_value:
            return self._requests.load(entry, txn)
        if entry.dirty and not entry.confirmed:
            return self._requests.secure(entry, txn)
        if not self._authority.may_finish(entry, txn):
            return Step.WAIT
        self._directory.forget(entry, txn.source)
        self._grant(entry, txn, exclusive=not entry.sharers)
        return Step.DONE

    def _owner_came_empty(self, entry: Entry, txn: Txn) -> Step:
        """Who asks holds nothing, whatever the directory says."""
        self._directory.forget(entry, txn.source)
        if self._directory.mode(entry) is Durability.LOCAL and not entry.dirty:
            entry.loaded = entry.has_value = False  # what it may have written is gone
        return Step.AGAIN

    def _grant(self, entry: Entry, txn: Txn, *, exclusive: bool) -> None:
        if self._leases.find(txn.source, txn.lease) is None:
            return
        block = None
        if exclusive:
            if self._directory.mode(entry) is Durability.LOCAL:
                block = self._directory.next_block()
            self._directory.own(entry, txn, None)
        else:
            self._directory.share(entry, txn.source, txn.number)
        copy = entry.record.copy(self._context.now_ms)
        self._outgoing.reply(txn, Granted(copy, exclusive, block))

    # --- Writes -------------------------------------------------------------------------------

    def _is_behind(self, entry: Entry) -> bool:
        """Whether an owner writes by itself, so that it alone knows the newest.

        That is for the durability of this home to say: an owner got a block with its grant. Whose
        write was committed here has none, and writes here again.
        """
        owns_block = entry.owner is not None and entry.owner_commit is None
        return owns_block and self._directory.mode(entry) is Durability.LOCAL

    def _write(self, entry: Entry, txn: Txn) -> Step:
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
            self._outgoing.ask_to_yield(entry, txn, others)
            return Step.WAIT
        if txn.kind is TxnKind.OWNERSHIP:
            return self._give_ownership(entry, txn)
        return self._commits.make_durable(entry, txn)

    def _judge(self, entry: Entry, txn: Txn) -> Refused | None:
        if txn.change is None or txn.kind is TxnKind.EXPIRY:
            return None
        return judge(entry.record, txn.change, lost=entry.lost)

    def _give_ownership(self, entry: Entry, txn: Txn) -> Step:
        if entry.dirty:
            return self._requests.secure(entry, txn)
        if not entry.has_value:
            return self._requests.load(entry, txn)
        if not self._authority.may_finish(entry, txn):
            return Step.WAIT
        self._directory.forget(entry, txn.source)
        self._grant(entry, txn, exclusive=True)
        return Step.DONE

    # --- Write-backs and recovery -------------------------------------------------------------

    def _write_back(self, entry: Entry, txn: Txn) -> Step:
        copy = txn.copy
        owns = entry.owner == txn.source and entry.owner_grant == txn.grant
        if copy is not None and owns and copy.version > entry.record.version:
            record = received(copy, self._context.now_ms)
            self._directory.set_record(entry, record, dirty=True, confirmed=False)
        if entry.dirty:
            return self._requests.secure(entry, txn)
        self._outgoing.reply(txn, WrittenBack())
        return Step.DONE

    def _recovered(self, entry: Entry) -> Step:
        """What others kept has been looked at: write it back, or let them drop it."""
        if entry.lost:
            entry.offers.clear()
        elif entry.dirty:
            self._timers.soonest(("flush", entry.key), self._context.now_ms)
        else:
            self._outgoing.tell_unmade(entry)
            self._outgoing.tell_clean(entry)
        return Step.DONE
