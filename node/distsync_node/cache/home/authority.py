"""What a home may do with a key now; keys for which it has to wait are remembered here.

It guarantees that nothing is done with a key that another home may be serving, and that nothing is
committed or granted without the node lease. `take_waiting` is for when either may have changed.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.handover import Handover
from distsync_node.cache.home.entry import Entry, Txn
from distsync_node.cache.tables import TxnState


class Authority:
    """Judges for the transaction that runs, which waits if the answer is no."""

    def __init__(self, context: Context, handover: Handover) -> None:
        self._context = context
        self._handover = handover
        self._waiting: dict[str, None] = {}  # for the takeover or for the node lease

    def may_serve(self, entry: Entry, txn: Txn) -> bool:
        """Whether nobody else can be serving the key."""
        if self._handover.covers(entry.key):
            return True
        txn.become(TxnState.TAKING_OVER)
        self._waiting[entry.key] = None
        return False

    def may_finish(self, entry: Entry, txn: Txn) -> bool:
        """Nothing is committed or granted without the node lease."""
        if self._context.holds_node_lease():
            return True
        txn.become(TxnState.STALLED)
        self._waiting[entry.key] = None
        return False

    def take_waiting(self) -> list[str]:
        """Return the keys that wait, and forget them."""
        waiting, self._waiting = list(self._waiting), {}
        return waiting

    def forget(self, key: str) -> None:
        """Nothing of the key waits any more."""
        self._waiting.pop(key, None)
