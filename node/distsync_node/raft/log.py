"""The log in memory: the entries that are kept, in front of which lies one known base.

Guarantees
- Indexes are contiguous and terms never fall along the log; an append that would break this
  raises `InvariantViolation`.
- `base_index`/`base_term` name the position just before the first kept entry, so that the
  consistency check of an append (thesis §3.5) can be made for every kept entry.
- Entries at or below the snapshot may be kept for followers that lag a little (design §2).

Terms are also indexed as runs (first index, term), so that finding the borders of a term while a
log is repaired takes a binary search instead of a walk.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import Entry, LogIndex, Term

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from distsync_node.raft.types import SnapshotMeta

ENTRY_OVERHEAD_BYTES = 32  # what an entry costs beside its payload when batches are measured


class Log:
    """A contiguous run of entries after a base whose term is known."""

    __slots__ = (
        "_entries",
        "_run_starts",
        "_run_terms",
        "base_index",
        "base_stamp_ms",
        "base_term",
        "last_index",
    )

    def __init__(self, base_index: LogIndex, base_term: Term, base_stamp_ms: int) -> None:
        self.reset(base_index, base_term, base_stamp_ms)

    @classmethod
    def recover(cls, meta: SnapshotMeta, entries: Sequence[Entry]) -> Log:
        """Build the log that belongs to a snapshot from what the disk holds.

        A log that does not reach the snapshot, or that disagrees with it at its index, was
        superseded by it: the process stopped between making the snapshot durable and deleting it.
        """
        if not entries or entries[-1].index < meta.index:
            return cls(meta.index, meta.term, meta.stamp_ms)
        first = entries[0]
        if first.index == meta.index + 1:
            log = cls(meta.index, meta.term, meta.stamp_ms)
            log.extend(entries)
            return log
        if first.index > meta.index:
            raise InvariantViolation(f"log starts at {first.index}, snapshot ends at {meta.index}")
        if entries[meta.index - first.index].term != meta.term:
            return cls(meta.index, meta.term, meta.stamp_ms)
        # The term before the first entry is not known, so that entry serves as the base.
        log = cls(first.index, first.term, first.stamp_ms)
        log.extend(entries[1:])
        return log

    def reset(self, base_index: LogIndex, base_term: Term, base_stamp_ms: int) -> None:
        """Forget all entries and start behind another base."""
        self._entries: list[Entry] = []
        self.base_index = base_index
        self.base_term = base_term
        self.base_stamp_ms = base_stamp_ms
        self.last_index = base_index
        self._run_starts: list[int] = [base_index]
        self._run_terms: list[Term] = [base_term]

    @property
    def first_index(self) -> LogIndex:
        """Index of the first kept entry; base + 1 when there is none."""
        return LogIndex(self.base_index + 1)

    @property
    def last_term(self) -> Term:
        """Term of the last entry, or of the base."""
        return self._run_terms[-1]

    @property
    def last_stamp_ms(self) -> int:
        """Stamp of the last entry, or of the base."""
        return self._entries[-1].stamp_ms if self._entries else self.base_stamp_ms

    def term_at(self, index: int) -> Term:
        """Return the term at an index in [base, last].

        Raises: InvariantViolation outside of that range.
        """
        position = index - self.base_index - 1
        if position >= 0:
            if index > self.last_index:
                raise InvariantViolation(f"no entry {index}, the log ends at {self.last_index}")
            return self._entries[position].term
        if position == -1:
            return self.base_term
        raise InvariantViolation(f"entry {index} is compacted, the base is {self.base_index}")

    def matches(self, index: int, term: Term) -> bool:
        """Whether the log holds an entry (or its base) of that index and term."""
        if not self.base_index <= index <= self.last_index:
            return False
        return self.term_at(index) == term

    def append(self, entry: Entry) -> None:
        """Append one entry behind the last."""
        if entry.index != self.last_index + 1 or entry.term < self._run_terms[-1]:
            raise InvariantViolation(
                f"entry {entry.index} of term {entry.term} does not follow "
                f"{self.last_index} of term {self.last_term}"
            )
        if entry.term != self._run_terms[-1]:
            self._run_starts.append(entry.index)
            self._run_terms.append(entry.term)
        self._entries.append(entry)
        self.last_index = entry.index

    def extend(self, entries: Iterable[Entry]) -> None:
        """Append entries in order."""
        for entry in entries:
            self.append(entry)

    def truncate_from(self, index: int) -> None:
        """Drop the entries from that index on."""
        if index <= self.base_index:
            raise InvariantViolation(f"cannot truncate at {index}, the base is {self.base_index}")
        del self._entries[index - self.base_index - 1 :]
        self.last_index = LogIndex(index - 1)
        while self._run_starts[-1] >= index:
            self._run_starts.pop()
            self._run_terms.pop()

    def compact_to(self, base_index: int) -> None:
        """Forget the entries up to and including that index, which becomes the base."""
        if base_index <= self.base_index:
            return
        base = self._entries[base_index - self.base_index - 1]
        del self._entries[: base_index - self.base_index]
        self.base_index, self.base_term, self.base_stamp_ms = base.index, base.term, base.stamp_ms
        run = bisect_right(self._run_starts, base_index) - 1
        del self._run_starts[:run]
        del self._run_terms[:run]
        self._run_starts[0] = base_index

    def entry(self, index: int) -> Entry:
        """Return a kept entry."""
        position = index - self.base_index - 1
        if position < 0 or index > self.last_index:
            raise InvariantViolation(f"no entry {index} in {self.first_index}..{self.last_index}")
        return self._entries[position]

    def slice(self, first: int, last: int) -> tuple[Entry, ...]:
        """Return the entries first..last, both included."""
        start = first - self.base_index - 1
        if start < 0 or last > self.last_index:
            raise InvariantViolation(
                f"entries {first}..{last} asked of {self.first_index}..{self.last_index}"
            )
        return tuple(self._entries[start : last - self.base_index])

    def batch(self, first: int, max_entries: int, max_bytes: int) -> tuple[tuple[Entry, ...], int]:
        """Return the entries from `first` on that fit one request, at least one, and their size."""
        start = first - self.base_index - 1
        if start < 0:
            raise InvariantViolation(f"entry {first} is compacted, the base is {self.base_index}")
        chosen = self._entries[start : start + max_entries]
        size_bytes = 0
        for count, entry in enumerate(chosen):
            entry_bytes = len(entry.payload) + ENTRY_OVERHEAD_BYTES
            if count and size_bytes + entry_bytes > max_bytes:
                return tuple(chosen[:count]), size_bytes
            size_bytes += entry_bytes
        return tuple(chosen), size_bytes

    def first_index_of_run(self, index: int) -> LogIndex:
        """Return the first known index of the term that `index` has."""
        return LogIndex(self._run_starts[bisect_right(self._run_starts, index) - 1])

    def last_index_of_term(self, term: Term) -> LogIndex | None:
        """Return the last index of a term, None when no kept entry or base has it."""
        run = bisect_right(self._run_terms, term) - 1
        if run < 0 or self._run_terms[run] != term:
            return None
        if run + 1 < len(self._run_starts):
            return LogIndex(self._run_starts[run + 1] - 1)
        return self.last_index

    def is_up_to_date(self, last_index: int, last_term: Term) -> bool:
        """Whether a candidate's log is at least as up to date as this one (thesis §3.6.1)."""
        own_term = self._run_terms[-1]
        return last_term > own_term or (last_term == own_term and last_index >= self.last_index)
