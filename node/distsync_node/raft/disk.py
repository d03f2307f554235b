"""What goes to the disk in a step, and how much of what went is known to be there.

A step gathers at most one `Persist`: hard state, entries, a snapshot, and the messages that may
only leave afterwards. Persists are executed in the order of `seq`, which is the whole of the
ordering that correctness needs: a message put into a later Persist leaves after everything before.

Invariants
- `durable_index` never counts an entry that was replaced since it was handed to the disk: when the
  log is cut, what is still on its way counts only up to the cut. (Otherwise an old write that
  reports late would vouch for the new entry at the same index.)
- `hard_durable` is False from the moment term or vote change until that very state is on disk. The
  commit index that is noted along with them holds nothing back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import Entry, HardState, LogIndex, Persist, Send, Snapshot

if TYPE_CHECKING:
    from distsync_node.raft.types import MemberId, RaftMessage


class DiskQueue:
    """The Persist being gathered and the ones under way."""

    __slots__ = (
        "_commit_noted",
        "_discard_log",
        "_entries",
        "_hard_changed",
        "_hard_seq",
        "_keep_from",
        "_pending",
        "_persisted_seq",
        "_snapshot",
        "_then",
        "durable_index",
        "last_seq",
        "staged",
    )

    def __init__(self, durable_index: LogIndex) -> None:
        self.durable_index = durable_index
        self.last_seq = 0
        self.staged = False
        self._persisted_seq = 0
        self._hard_seq = 0
        self._hard_changed = False
        self._commit_noted = False
        self._pending: deque[tuple[int, LogIndex]] = deque()  # (seq, durable index once done)
        self._entries: tuple[Entry, ...] = ()
        self._then: list[Send] = []
        self._snapshot: Snapshot | None = None
        self._keep_from = LogIndex(0)
        self._discard_log = False

    @property
    def hard_durable(self) -> bool:
        """Whether the present term and vote are on disk."""
        return not self._hard_changed and self._hard_seq <= self._persisted_seq

    def stage_hard_state(self) -> None:
        """Term or vote changed."""
        self._hard_changed = True
        self.staged = True

    def note_commit(self) -> None:
        """The commit index is worth remembering; nothing waits for it."""
        self._commit_noted = True
        self.staged = True

    def stage_entries(self, entries: tuple[Entry, ...]) -> None:
        """Entries were appended to the log."""
        self._entries = self._entries + entries if self._entries else entries
        self.staged = True

    def stage_message(self, to: MemberId, message: RaftMessage) -> None:
        """Let a message leave once everything handed over so far is on disk."""
        self._then.append(Send(to=to, message=message))
        self.staged = True

    def stage_snapshot(self, snapshot: Snapshot, keep_from: LogIndex, *, discard_log: bool) -> None:
        """A snapshot was taken, or received in place of the log."""
        self._snapshot = snapshot
        self._keep_from = keep_from
        self._discard_log = discard_log
        self.staged = True

    def truncated_from(self, index: int) -> None:
        """The log lost its entries from that index on."""
        limit = LogIndex(index - 1)
        self.durable_index = min(self.durable_index, limit)
        if self._pending:
            self._pending = deque((seq, min(last, limit)) for seq, last in self._pending)

    def flush(self, hard_state: HardState) -> Persist:
        """Close the gathered Persist; call it only when something is staged."""
        self.last_seq = seq = self.last_seq + 1
        if self._discard_log and self._snapshot is not None:
            self._pending.append((seq, self._snapshot.meta.index))
        if self._entries:
            self._pending.append((seq, self._entries[-1].index))
        persist = Persist(
            seq=seq,
            hard_state=hard_state if self._hard_changed or self._commit_noted else None,
            entries=self._entries,
            snapshot=self._snapshot,
            keep_from=self._keep_from,
            discard_log=self._discard_log,
            then=tuple(self._then) if self._then else (),
        )
        if self._hard_changed:
            self._hard_seq = seq
            self._hard_changed = False
        self._commit_noted = False
        self._entries = ()
        if self._then:
            self._then = []
        self._snapshot = None
        self._keep_from = LogIndex(0)
        self._discard_log = False
        self.staged = False
        return persist

    def persisted(self, seq: int) -> None:
        """Everything up to and including `seq` is on disk."""
        if seq > self.last_seq:
            raise InvariantViolation(f"seq {seq} reported durable, {self.last_seq} was the last")
        if seq <= self._persisted_seq:
            return
        self._persisted_seq = seq
        pending = self._pending
        while pending and pending[0][0] <= seq:
            self.durable_index = pending.popleft()[1]
