"""Several Persist effects executed in order, as one. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import Entry, HardState, LogIndex, Persist, Snapshot

_NO_INDEX = LogIndex(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Several effects as one; `discard` is the index of the snapshot that emptied the log last."""

    hard_state: HardState | None
    snapshot: Snapshot | None
    keep_from: LogIndex
    discard: LogIndex | None
    entries: Sequence[Entry]
    last_index: LogIndex


def merge(batch: Sequence[Persist], last_index: LogIndex) -> Batch:
    """Return what executing the effects in order comes to, on a log that ends at `last_index`.

    Raises:
        InvariantViolation: if entries leave a gap.
    """
    hard_state: HardState | None = None
    snapshot: Snapshot | None = None
    keep_from = _NO_INDEX
    discard: LogIndex | None = None
    entries: Sequence[Entry] = ()
    for persist in batch:
        hard_state = persist.hard_state or hard_state
        if persist.snapshot is not None:
            snapshot, keep_from = persist.snapshot, persist.keep_from
            index = snapshot.meta.index
            if persist.discard_log or index > last_index:
                discard, entries, last_index = index, (), index
        if persist.entries:
            first, last = persist.entries[0].index, persist.entries[-1].index
            if first > last_index + 1 or last - first != len(persist.entries) - 1:
                raise InvariantViolation(f"entries {first} to {last} do not follow {last_index}")
            entries = [*entries, *persist.entries] if entries else persist.entries
            last_index = last
    return Batch(
        hard_state=hard_state,
        snapshot=snapshot,
        keep_from=keep_from,
        discard=discard,
        entries=entries,
        last_index=last_index,
    )
