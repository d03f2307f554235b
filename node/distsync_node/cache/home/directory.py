"""The directory of a home: its keys, who holds what of them, and what Redis has not.

It guarantees:

- An entry names a holder exactly while that holder's lease names the entry, so that all that ends
  with a lease is known.
- A dirty entry is in `unwritten`, or in `flushing` while a request writes it back; `dirty_bytes` is
  what all of them take.
- Each version is assigned once, and is higher than all that this home has assigned.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from distsync_node.cache.context import Context
from distsync_node.cache.copy_leases import GrantedLease, GrantedLeases
from distsync_node.cache.home.entry import Entry, Txn
from distsync_node.cache.messages import Committed
from distsync_node.cache.timers import Timers
from distsync_node.cache.types import Durability, PeerId, Record, Version
from distsync_node.errors import InvariantViolation

BLOCK: Final = 1 << 20
"""How many versions an owner under local durability may assign by itself."""


class Directory:
    """All keys whose home this node is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._options = context.options
        self._last_txn = 0
        self._counter = 0
        self.unwritten: OrderedDict[str, None] = OrderedDict()  # dirty, and no flush under way
        self.flushing: set[str] = set()  # a flush is under way
        self.deciding: set[str] = set()  # a version is assigned and not committed
        self.entries: dict[str, Entry] = {}
        self.leases = GrantedLeases(context.options)
        self.timers: Timers[tuple[str, str]] = Timers()
        self.dirty_bytes = 0

    # --- Keys ---------------------------------------------------------------------------------

    def entry(self, key: str) -> Entry:
        """Return the entry of a key; a new one if there is none."""
        entry = self.entries.get(key)
        if entry is None:
            entry = self.entries[key] = Entry(key=key)
        return entry

    def mode(self, entry: Entry) -> Durability:
        """Return the durability of a key."""
        return self._options.durability_of(entry.key)

    def end_txn(self, entry: Entry) -> None:
        """Nothing is under way on the key."""
        entry.txn = None
        self.deciding.discard(entry.key)

    def remove(self, entry: Entry) -> None:
        """Know nothing of the key any more, but for its holders."""
        del self.entries[entry.key]
        for name in ("txn", "flush", "mirror"):
            self.timers.cancel((name, entry.key))
        self.unwritten.pop(entry.key, None)
        self.flushing.discard(entry.key)
        self.deciding.discard(entry.key)
        if entry.dirty:
            self.dirty_bytes -= entry.record.size

    # --- Numbers ------------------------------------------------------------------------------

    def next_txn(self) -> int:
        """Return the number of a new transaction."""
        self._last_txn += 1
        return self._last_txn

    def next_version(self) -> Version:
        """Return the version of a new write."""
        self._counter += 1
        return Version(self._context.epoch, self._counter)

    def next_block(self) -> tuple[int, int, int]:
        """Return versions for an owner to assign: their epoch, the first counter, and the end."""
        block = (self._context.epoch, self._counter + 1, self._counter + 1 + BLOCK)
        self._counter += BLOCK
        return block

    # --- Holders ------------------------------------------------------------------------------

    def own(self, entry: Entry, txn: Txn, committed: Committed | None) -> None:
        """Who asked owns the key; `committed`: what its Ask came to, if it was a write."""
        entry.owner, entry.owner_grant, entry.owner_commit = txn.source, txn.number, committed
        self._lease_of(txn.source).keys.add(entry.key)

    def share(self, entry: Entry, holder: PeerId, grant: int) -> None:
        """That holder has a copy under that grant."""
        entry.sharers[holder] = grant
        self._lease_of(holder).keys.add(entry.key)

    def forget(self, entry: Entry, holder: PeerId) -> None:
        """That holder holds nothing of it."""
        entry.forget(holder)
        lease = self.leases.by_holder.get(holder)
        if lease is not None:
            lease.keys.discard(entry.key)

    def _lease_of(self, holder: PeerId) -> GrantedLease:
        lease = self.leases.by_holder.get(holder)
        if lease is None:
            raise InvariantViolation(f"{holder} has no lease to hold anything under")
        return lease

    # --- What Redis has not -------------------------------------------------------------------

    def set_record(self, entry: Entry, record: Record, *, dirty: bool, confirmed: bool) -> None:
        """The key has this record; `confirmed`: it is known to be in a second place."""
        if entry.dirty:
            self.dirty_bytes -= entry.record.size
        entry.record, entry.has_value = record, True
        if dirty and not entry.dirty:
            entry.dirty_since_ms = self._context.now_ms
        entry.dirty, entry.confirmed = dirty, confirmed
        if dirty:
            self.dirty_bytes += record.size
        self.file(entry)

    def file(self, entry: Entry) -> None:
        """Keep in mind whether it has to be written back, and whether it is being."""
        if entry.flush:
            self.flushing.add(entry.key)
        else:
            self.flushing.discard(entry.key)
        if entry.dirty and not entry.flush:
            self.unwritten.setdefault(entry.key)
        else:
            self.unwritten.pop(entry.key, None)

    def first_unwritten(self) -> Entry:
        """Return whose turn it is to be written back; it is the last to have another one."""
        key = next(iter(self.unwritten))
        self.unwritten.move_to_end(key)
        return self.entries[key]

    @property
    def is_clean(self) -> bool:
        """Whether Redis has everything."""
        return not (self.unwritten or self.flushing or self.deciding)
