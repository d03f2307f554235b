"""The home of keys: what holders, other homes and Redis say to it, and what is due.

It guarantees:

- An Ask is served once, however often it comes, and only under the lease that its holder has.
- What comes late changes nothing: each answer names the transaction or the request that it is for,
  and each hint the grant.
"""

from __future__ import annotations

from typing import assert_never

from distsync_node.cache.context import Context
from distsync_node.cache.events import Forgotten, Loaded, RedisFailed, Stored
from distsync_node.cache.handover import Handover
from distsync_node.cache.home.authority import Authority
from distsync_node.cache.home.commits import Commits
from distsync_node.cache.home.directory import Directory
from distsync_node.cache.home.endings import Endings
from distsync_node.cache.home.entry import Entry, Txn
from distsync_node.cache.home.outgoing import Outgoing
from distsync_node.cache.home.requests import Requests
from distsync_node.cache.home.transactions import Transactions
from distsync_node.cache.judging import Offer
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.messages import (
    Ask,
    AskOwnership,
    AskRead,
    AskWrite,
    AskWriteBack,
    Dropped,
    GivenUp,
    Mirrored,
    Renew,
    Renewed,
    Yielded,
)
from distsync_node.cache.tables import TxnKind, TxnState
from distsync_node.cache.types import ABSENT, Copy, PeerId, Record, received


class Home:
    """All keys whose home this node is."""

    def __init__(self, context: Context, kept: KeptCopies, handover: Handover) -> None:
        self._context = context
        self._options = context.options
        self._kept = kept
        self.directory = directory = Directory(context)
        self._leases = directory.leases
        self._timers = directory.timers
        authority = Authority(context, handover)
        self._outgoing = outgoing = Outgoing(context, directory)
        self._requests = requests = Requests(context, handover, directory, authority, outgoing)
        commits = Commits(context, directory, authority, outgoing, requests)
        self.transactions = Transactions(context, directory, authority, outgoing, requests, commits)
        self.endings = Endings(context, kept, directory, authority, outgoing, self.transactions)

    # --- From holders -------------------------------------------------------------------------

    def renew(self, source: PeerId, message: Renew) -> None:
        """A holder wants its lease renewed, or a new one."""
        lease = self._leases.by_holder.get(source)
        if message.lease:
            if lease is None or lease.number != message.lease:
                self._context.send(source, Renewed(0, message.number, 0))
                return
        elif lease is None or lease.made_by != message.number:
            if message.number <= self._leases.made_by.get(source, 0):
                return
            # It says that it holds nothing of ours.
            self.endings.lapse(source)
            lease = self._leases.grant(source, message.number, self._context.now_ms)
        lease.finished_below(message.floor)
        lease_ms = self._leases.renew(lease, self._context.now_ms)
        self._context.send(source, Renewed(lease.number, message.number, lease_ms))

    def ask(self, source: PeerId, message: Ask) -> None:
        """A holder asks. The same number is served once."""
        lease = self._leases.find(source, message.lease)
        if lease is None:
            return
        lease.finished_below(message.floor)
        if message.number < lease.floor:
            return
        if message.number in lease.answers:
            known = lease.answers[message.number]
            if known is not None:
                self._outgoing.send_reply(lease, message.number, *known)
            return
        if self._context.retired or self._context.home_of(message.key) != self._context.me:
            if isinstance(message.wish, AskWrite):
                lease.answers[message.number] = (message.key, GivenUp())
                self._outgoing.send_reply(lease, message.number, message.key, GivenUp())
            return
        lease.answers[message.number] = None
        entry = self.directory.entry(message.key)
        entry.queue.append(self._txn_of(source, message))
        self.transactions.run(entry)

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
            id=self.directory.next_txn(),
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
        lease = self._leases.by_holder.get(source)
        if lease is not None:
            lease.unacknowledged.discard((message.txn, message.key))
        entry = self.directory.entries.get(message.key)
        txn = None if entry is None else entry.txn
        if entry is None or txn is None or txn.id != message.txn or source not in txn.waiting:
            return
        txn.waiting.discard(source)
        self._take_yielded(entry, txn, source, message)
        self.transactions.run(entry)

    def _take_yielded(self, entry: Entry, txn: Txn, source: PeerId, message: Yielded) -> None:
        was_owner, grant = entry.owner == source, entry.owner_grant
        self.directory.forget(entry, source)
        if was_owner and entry.dirty:
            entry.confirmed = message.version >= entry.record.version
        copy = message.copy
        if copy is not None and was_owner:
            if copy.version > entry.record.version:
                record = received(copy, self._context.now_ms)
                self.directory.set_record(entry, record, dirty=True, confirmed=False)
            elif copy.version == entry.record.version and not entry.has_value:
                entry.record = Record(
                    copy.version, copy.value, entry.record.expires_ms, copy.fences
                )
                entry.has_value = True
        if copy is not None and txn.state is TxnState.SNOOPING:
            self.directory.share(entry, source, grant)

    def dropped(self, source: PeerId, message: Dropped) -> None:
        """A holder has evicted what that grant gave it."""
        entry = self.directory.entries.get(message.key)
        if self._leases.find(source, message.lease) is None or entry is None:
            return
        if entry.grant_of(source) != message.grant or entry.txn is not None:
            return
        self.directory.forget(entry, source)
        self.transactions.run(entry)

    # --- From the successor, and from who keeps copies ----------------------------------------

    def mirrored(self, source: PeerId, message: Mirrored) -> None:
        """The successor has the copy."""
        entry = self.directory.entries.get(message.key)
        txn = None if entry is None else entry.txn
        if entry is None or txn is None or txn.id != message.txn or txn.mirror != source:
            return
        if message.kept:
            txn.mirror, txn.mirrored = None, True
        else:
            txn.lose_mirror()
        self.transactions.run(entry)

    def offer(self, source: PeerId, key: str, copy: Copy, *, unmarked: bool) -> None:
        """Somebody has kept a copy of a key of this home; `unmarked` as in `Kept`."""
        if self._context.home_of(key) != self._context.me:
            return
        entry = self.directory.entry(key)
        record = received(copy, self._context.now_ms)
        known = entry.offers.get(source)
        if known is None or known.record.version < record.version:
            entry.offers[source] = Offer(record, unmarked)
        waits = [txn for txn in (entry.txn, *entry.queue) if txn is not None]
        if not any(txn.kind is TxnKind.RECOVERY and txn.state is None for txn in waits):
            number = self.directory.next_txn()
            txn = Txn(kind=TxnKind.RECOVERY, key=key, source=self._context.me, id=number)
            entry.queue.append(txn)
        self.transactions.run(entry)

    # --- From Redis ---------------------------------------------------------------------------

    def loaded(self, event: Loaded) -> None:
        """Redis has read a key."""
        self._go_on(self._requests.loaded(event))

    def stored(self, event: Stored) -> None:
        """Redis has what it was to write."""
        self._go_on(self._requests.stored(event))

    def forgotten(self, event: Forgotten) -> None:
        """Redis knows nothing of the key any more, so it did nothing."""
        self._go_on(self._requests.forgotten(event))

    def failed(self, event: RedisFailed) -> None:
        """Redis did not do it, or nobody knows whether it did."""
        self._go_on(self._requests.failed(event))

    def _go_on(self, entry: Entry | None) -> None:
        if entry is not None:
            self.transactions.run(entry)

    # --- Time ---------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due."""
        for kind, key in self._timers.due(self._context.now_ms):
            entry = self.directory.entries.get(key)
            if entry is None:
                continue
            txn = entry.txn
            if kind == "flush":
                self._requests.flush(entry)
            elif txn is None:
                self.transactions.run(entry)
            elif kind == "mirror":
                if txn.mirror is not None:
                    txn.lose_mirror()
                    self.transactions.run(entry)
            elif txn.waiting:
                self._outgoing.send_yields(entry, txn)
            elif txn.mirror is not None:
                self._outgoing.send_mirror(entry, txn)
            else:
                self.transactions.run(entry)

    def next_tick_ms(self) -> int | None:
        """Return when something is due next."""
        times = [lease.ends_ms for lease in self._leases.by_holder.values()]
        due = self._timers.next_ms()
        return min(times if due is None else [*times, due], default=None)

    def write_back_more(self) -> None:
        """Begin to write back dirty records, as many as may be under way at once."""
        directory = self.directory
        room = self._options.write_backs_at_once - len(directory.flushing)
        for _ in range(min(room, len(directory.unwritten))):
            self._requests.flush(directory.first_unwritten())

    # --- What can be said of it ---------------------------------------------------------------

    @property
    def is_mirrored(self) -> bool:
        """Whether every value that Redis has not is in two places, as far as is known here."""
        return all(self._is_safe(entry) for entry in self.directory.entries.values()) and not any(
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
        entry = self.directory.entries.get(key)
        return entry is not None and entry.loaded
