"""How a home gives things up: leases that end, keys that move, the node that leaves.

It guarantees:

- The home goes on without a holder only when that holder's lease has certainly ended.
- A key whose home this node is no more leaves with all that is known of it: a dirty value is kept
  for the next home, and each write that waits is answered with what became of it.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.home.authority import Authority
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.entry import Entry, Txn
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.home.transactions import Transactions
from distsync_node.cache.kept import Kept, KeptCopies
from distsync_node.cache.messages import Denied, GivenUp, Result
from distsync_node.cache.tables import TxnKind
from distsync_node.cache.types import ABSENT, Code, Durability, PeerId


class Endings:
    """Called when time has passed, and when the ring is another one."""

    def __init__(
        self,
        context: Context,
        kept: KeptCopies,
        directory: Directory,
        authority: Authority,
        outgoing: Outgoing,
        transactions: Transactions,
    ) -> None:
        self._context = context
        self._kept = kept
        self._directory = directory
        self._leases = directory.leases
        self._timers = directory.timers
        self._authority = authority
        self._outgoing = outgoing
        self._transactions = transactions

    # --- Leases -------------------------------------------------------------------------------

    def expire_leases(self) -> None:
        """Go on without the holders whose leases have certainly ended. Before anything else."""
        for lease in list(self._leases.by_holder.values()):
            if lease.has_ended(self._context.now_ms):
                self.lapse(lease.holder)

    def lapse_those_who_left(self) -> None:
        """They have certainly no lease of any kind any more."""
        for holder in sorted(self._leases.by_holder.keys() - self._context.peers):
            self.lapse(holder)

    def lapse(self, holder: PeerId) -> None:
        """Go on without a holder: it certainly holds nothing of this home any more."""
        lease = self._leases.by_holder.pop(holder, None)
        if lease is None:
            return
        for key in sorted(lease.keys):
            entry = self._directory.entries.get(key)
            if entry is None:
                continue
            was_owner = entry.owner == holder
            entry.forget(holder)
            if was_owner and entry.dirty:
                # Whether it ever heard of the newest value is not known.
                entry.confirmed = False
                self._timers.soonest(("flush", key), self._context.now_ms)
            elif was_owner and self._directory.mode(entry) is Durability.LOCAL:
                entry.loaded = entry.has_value = False
            if entry.txn is not None:
                entry.txn.waiting.discard(holder)
            self._transactions.run(entry)

    # --- The ring -----------------------------------------------------------------------------

    def give_up_moved(self, *, continuous: bool) -> None:
        """A new ring: first, give up what has moved."""
        context = self._context
        for entry in list(self._directory.entries.values()):
            if not continuous or context.home_of(entry.key) != context.me:
                self._give_up(entry)
        if not continuous and not context.retired:  # then it has yet to say what became of writes
            self._leases.by_holder.clear()

    def go_on(self) -> None:
        """A new ring: then, go on with the rest, under the new epoch."""
        context = self._context
        if context.left_have_ended:
            self.lapse_those_who_left()
        for entry in list(self._directory.entries.values()):
            txn = entry.txn
            places = () if entry.mark is None else entry.mark.places
            if entry.dirty and not context.peers.issuperset(places):
                self._timers.soonest(("flush", entry.key), context.now_ms)
            if txn is not None and txn.waiting:
                self._outgoing.send_yields(entry, txn)
            elif txn is not None and txn.mirror is not None:
                txn.lose_mirror()
                self._transactions.run(entry)

    def retire(self) -> None:
        """This node leaves: whoever still waits is to ask the next home."""
        for entry in list(self._directory.entries.values()):
            self._give_up(entry)

    def _give_up(self, entry: Entry) -> None:
        directory = self._directory
        directory.remove(entry)
        self._authority.forget(entry.key)
        if entry.dirty:
            local = directory.mode(entry) is Durability.LOCAL
            since_ms = self._context.now_ms
            self._kept.keep(entry.key, Kept(record=entry.record, since_ms=since_ms, unmarked=local))
        for holder in list(entry.holders()):
            directory.forget(entry, holder)
        for txn in (entry.txn, *entry.queue):
            if txn is not None:
                self._give_up_txn(txn)
        for lease in self._leases.by_holder.values():
            if entry.txn is not None:
                lease.unacknowledged.discard((entry.txn.id, entry.key))

    def _give_up_txn(self, txn: Txn) -> None:
        lease = self._leases.find(txn.source, txn.lease)
        if lease is None or txn.number not in lease.answers:
            return
        if txn.kind is TxnKind.WRITE:
            self._outgoing.reply(txn, self._given_up(txn))
        else:
            del lease.answers[txn.number]

    def _given_up(self, txn: Txn) -> Result:
        """Return what is known of a write that was not committed and will not be, here."""
        if txn.exposed is None:
            return GivenUp()
        if txn.exposed == txn.version:
            return GivenUp(txn.version)
        return Denied(Code.UNKNOWN, ABSENT, 0)  # under which of the two?
