"""What a home says: to holders, to the ring successor, to who keeps copies for safety.

It guarantees:

- The lease of who is asked to yield is not renewed until that is answered (`copy_leases.py`).
- An answer is kept as it was given until its holder is known to have it, to be given again.
"""

from __future__ import annotations

from collections.abc import Callable

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import GrantedLease
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.entry import Entry, Txn
from distsync_node.cache.messages import Cleaned, Denied, Invalidate, Mirror, Reply, Result, Snoop
from distsync_node.cache.tables import TxnState
from distsync_node.cache.types import PeerId, Refused
from distsync_node.errors import InvariantViolation


class Outgoing:
    """Messages of this home. Who waits for an answer sends again, by the timer `txn` of its key."""

    def __init__(self, context: Context, directory: Directory) -> None:
        self._context = context
        self._options = context.options
        self._leases = directory.leases
        self._timers = directory.timers

    # --- Asked --------------------------------------------------------------------------------

    def ask_to_yield(self, entry: Entry, txn: Txn, holders: set[PeerId]) -> None:
        """Have these give up what they hold, or share it; the transaction waits for each."""
        txn.waiting = holders
        for holder in holders:
            lease = self._leases.by_holder.get(holder)
            if lease is not None:
                lease.unacknowledged.add((txn.id, entry.key))
        self.send_yields(entry, txn)

    def send_yields(self, entry: Entry, txn: Txn) -> None:
        """Ask those who have not yielded yet."""
        kind: Callable[..., Snoop | Invalidate]
        kind = Snoop if txn.state is TxnState.SNOOPING else Invalidate
        for holder in sorted(txn.waiting):
            lease = self._leases.by_holder.get(holder)
            if lease is None:
                raise InvariantViolation(f"{holder} holds {entry.key} without a lease")
            grant = entry.grant_of(holder)
            commit = entry.owner_commit if holder == entry.owner else None
            self._context.send(holder, kind(lease.number, txn.id, entry.key, grant, commit))
        self._timers.set(("txn", entry.key), self._context.now_ms + self._options.resend_ms)

    def send_mirror(self, entry: Entry, txn: Txn) -> None:
        """Have the successor keep a copy of what will be committed."""
        if txn.mirror is not None and txn.record is not None:
            copy = txn.record.copy(self._context.now_ms)
            self._context.send(txn.mirror, Mirror(txn.id, entry.key, copy))
            self._timers.set(("txn", entry.key), self._context.now_ms + self._options.resend_ms)

    # --- Told ---------------------------------------------------------------------------------

    def deny(self, txn: Txn, refusal: Refused) -> None:
        """Refuse what was asked."""
        self.reply(txn, Denied(refusal.code, refusal.version, refusal.newest))

    def reply(self, txn: Txn, result: Result) -> None:
        """Answer the Ask of a transaction, if its holder still has the lease it asked under."""
        lease = self._leases.find(txn.source, txn.lease)
        if lease is not None and txn.number in lease.answers:
            lease.answers[txn.number] = (txn.key, result)
            self.send_reply(lease, txn.number, txn.key, result)

    def send_reply(self, lease: GrantedLease, number: int, key: str, result: Result) -> None:
        """Send an answer, for the first time or again; it renews the lease, if that may be."""
        now_ms = self._context.now_ms
        lease_ms = 0 if self._context.retired else self._leases.renew(lease, now_ms)
        self._context.send(lease.holder, Reply(lease.number, number, lease_ms, key, result))

    def tell_clean(self, entry: Entry) -> None:
        """Redis has the record: who kept a copy for safety need not any more."""
        places = () if entry.mark is None else entry.mark.places
        told = {*places, *entry.offers, *([] if entry.owner is None else [entry.owner])}
        successor = self._context.successor_of(entry.key)
        if successor is not None:
            told.add(successor)  # a mirror that was too late may be there
        for peer in sorted(told & self._context.peers):
            self._context.send(peer, Cleaned(entry.key, entry.record.version))
        entry.offers.clear()

    def tell_unmade(self, entry: Entry) -> None:
        """What is newer than the record all the same never took effect, or was given up with a
        lease: who offered that need not keep it."""
        for peer, (offered, _) in entry.offers.items():
            if offered.version > entry.record.version and peer in self._context.peers:
                self._context.send(peer, Cleaned(entry.key, offered.version))
