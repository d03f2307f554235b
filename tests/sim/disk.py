"""A member's disk: what was synced stays over a crash, what was not is lost.

It executes Persist, Initialise and MarkRemoved as the storage of the node does: queued effects are
merged into one write and one sync; a snapshot becomes durable before the log record that goes with
it; after a crash the log goes with the snapshot if it holds its last entry, and is superseded
otherwise. A crash in the middle of a write leaves nothing of it, all of it, or everything up to and
including a snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from distsync_node.raft.types import (
    Entry,
    HardState,
    LogIndex,
    MemberId,
    Persist,
    RecoveredState,
    Snapshot,
)
from distsync_node.replica.types import Initialise, MarkRemoved
from sim.kernel import US_PER_MS, Kernel, Violation

FULL_RETRY_US = 50 * US_PER_MS


class Disk:
    """What is durable, and what is on its way there."""

    def __init__(self, kernel: Kernel, rng: Random, member_id: MemberId) -> None:
        self.member_id = member_id
        self.snapshot: Snapshot | None = None
        self.hard_state: HardState | None = None
        self.removed = False
        self.full = False
        self.sync_us = (100, 900)
        self.on_done: Callable[[Sequence[Any]], None] = _nobody
        self.on_full: Callable[[bool], None] = _nobody
        self._entries: list[Entry] = []
        self._discard: LogIndex | None = None  # superseded by the snapshot, not yet said in the log
        self._kernel = kernel
        self._rng = rng
        self._queue: list[Any] = []
        self._writing: list[Any] = []
        self._epoch = 0
        self._told_full = False

    # --- Writing ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return bool(self._writing)

    @property
    def writes_snapshot(self) -> bool:
        """Whether a snapshot is on its way to the disk."""
        return any(isinstance(one, Persist) and one.snapshot is not None for one in self._writing)

    def submit(self, effect: Persist | Initialise | MarkRemoved) -> None:
        """Queue an effect; `on_done` is told once it is durable."""
        self._queue.append(effect)
        if not self._writing:
            self._begin()

    def _begin(self) -> None:
        self._writing, self._queue = self._queue, []
        self._kernel.after(self._rng.randint(*self.sync_us), self._finish, self._epoch)

    def _finish(self, epoch: int) -> None:
        if epoch != self._epoch:
            return
        if self.full:
            self._kernel.faults["disk_full_write"] += 1
            self._tell_full(True)
            self._kernel.after(FULL_RETRY_US, self._finish, epoch)
            return
        done, self._writing = self._writing, []
        self._execute(done)
        self._tell_full(False)
        if self._queue:
            self._begin()
        self.on_done(done)

    def _tell_full(self, full: bool) -> None:
        if full != self._told_full:
            self._told_full = full
            self.on_full(full)

    def crash(self) -> None:
        """Power fails: what was not synced is lost, but for what may have reached the plate."""
        self._epoch += 1
        writing, self._writing, self._queue = self._writing, [], []
        self._told_full = False
        lost = bool(writing)
        if writing and not self.full:
            chance = self._rng.random()
            if chance < 0.25:
                self._execute(writing)
                lost = False
            elif chance < 0.6:
                self._execute_until_snapshot(writing)
        if lost:
            self._kernel.faults["unsynced_write_lost"] += 1

    # --- What a write does --------------------------------------------------------------------

    def _execute(self, effects: Sequence[Any]) -> None:
        for effect in effects:
            match effect:
                case Persist():
                    self._persist(effect)
                case Initialise():
                    self.snapshot, self.hard_state = effect.snapshot, effect.hard_state
                case MarkRemoved():
                    self.removed = True

    def _execute_until_snapshot(self, effects: Sequence[Any]) -> None:
        """A crash came between a snapshot and the log record that goes with it."""
        for position, effect in enumerate(effects):
            if isinstance(effect, Persist) and effect.snapshot is not None:
                self._execute(effects[:position])
                self._install(effect)
                self._kernel.faults["crash_after_snapshot"] += 1
                return

    def _persist(self, effect: Persist) -> None:
        if effect.snapshot is not None:
            self._install(effect)
        if effect.hard_state is not None:
            if self.hard_state is not None and effect.hard_state.term < self.hard_state.term:
                raise Violation("disk.term_fell", f"{self.member_id}: {effect.hard_state}")
            self.hard_state = effect.hard_state
        if self._discard is not None:
            self._entries, self._discard = [], None
        if effect.entries:
            self._append(effect.entries)
        if effect.snapshot is not None:
            keep = min(effect.keep_from, effect.snapshot.meta.index + 1)
            self._entries = [entry for entry in self._entries if entry.index >= keep]

    def _install(self, effect: Persist) -> None:
        snapshot = effect.snapshot
        if snapshot is None or (
            self.snapshot is not None and snapshot.meta.index < self.snapshot.meta.index
        ):
            raise Violation("disk.snapshot_fell", f"{self.member_id}: {effect}")
        self.snapshot = snapshot
        if effect.discard_log or snapshot.meta.index > self.last_index:
            self._discard = snapshot.meta.index

    def _append(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        if first > self.last_index + 1:
            raise Violation("disk.gap", f"{self.member_id}: {first} follows {self.last_index}")
        if self._entries:
            del self._entries[max(0, first - self._entries[0].index) :]
        self._entries.extend(entries)

    # --- What is there ------------------------------------------------------------------------

    @property
    def last_index(self) -> int:
        """Index of the last durable entry, or of the snapshot."""
        base = self.snapshot.meta.index if self.snapshot is not None else 0
        if self._discard is not None or not self._entries:
            return base
        return max(base, self._entries[-1].index)

    def holds(self, index: int, term: int) -> bool:
        """Whether the entry of that index and term is durable here, as itself or in a snapshot."""
        if self.snapshot is not None and index <= self.snapshot.meta.index:
            return True
        if self._discard is not None or not self._entries:
            return False
        position = index - self._entries[0].index
        return 0 <= position < len(self._entries) and self._entries[position].term == term

    def recover(self) -> RecoveredState | None:
        """Return what a restart finds."""
        self._epoch += 1
        if self.snapshot is None or self.hard_state is None:
            return None
        meta = self.snapshot.meta
        hard_state = self.hard_state
        if hard_state.term < meta.term:
            hard_state = HardState(meta.term, None)
            self.hard_state = hard_state
        entries = self._entries
        if entries and entries[0].index <= meta.index:
            position = meta.index - entries[0].index
            if position >= len(entries) or entries[position].term != meta.term:
                entries = []
                self._discard = meta.index
            else:
                self._discard = None
        return RecoveredState(
            member_id=self.member_id,
            hard_state=hard_state,
            snapshot=self.snapshot,
            entries=tuple(entries),
        )


def _nobody(_: Any) -> None:
    """Before the host is wired."""
