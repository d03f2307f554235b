"""Whatever is written, and whenever the power goes: what was acknowledged is there after it.

A naive model executes each Persist effect on plain values. A batch that a power cut interrupts may
have got as far as any of its steps, but no further and never in part.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from msgspec import structs

from distsync_node.errors import DiskFull, StorageFailed
from distsync_node.raft.types import Entry, HardState, LogIndex, Persist, Snapshot
from distsync_node.storage import Storage
from unit.storage.faultfs import FaultFileSystem, PowerCut
from unit.storage.samples import GENESIS, GENESIS_HARD_STATE, entry, hard_state, snapshot

PATH = Path("/data")
SEGMENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Model:
    """What the member remembers; `entries` is never trimmed, `keep_from` says what must remain."""

    hard_state: HardState
    snapshot: Snapshot
    entries: tuple[Entry, ...] = ()
    keep_from: int = 0

    @property
    def last_index(self) -> int:
        return self.entries[-1].index if self.entries else self.snapshot.meta.index

    def with_record(self, persist: Persist) -> Model:
        kept = self.entries
        if persist.entries:
            kept = tuple(e for e in kept if e.index < persist.entries[0].index) + persist.entries
        return replace(self, hard_state=persist.hard_state or self.hard_state, entries=kept)

    def with_snapshot(self, persist: Persist) -> Model:
        assert persist.snapshot is not None
        return replace(
            self,
            snapshot=persist.snapshot,
            keep_from=max(self.keep_from, persist.keep_from),
            entries=() if persist.discard_log else self.entries,
        )

    def interrupted_after_snapshot(self, persist: Persist) -> Model:
        """The snapshot made it and nothing of the record: Raft's rule decides about the log."""
        assert persist.snapshot is not None
        meta = persist.snapshot.meta
        agrees = any((e.index, e.term) == (meta.index, meta.term) for e in self.entries)
        state = self.hard_state if self.hard_state.term >= meta.term else hard_state(meta.term)
        kept = self.entries if agrees else ()
        return replace(self.with_snapshot(persist), entries=kept, hard_state=state)


def completed(model: Model, batch: list[Persist]) -> Model:
    for persist in batch:
        if persist.snapshot is not None:
            model = model.with_snapshot(persist)
        model = model.with_record(persist)
    return model


def possible(model: Model, batch: list[Persist]) -> list[Model]:
    """The states that a crash during the batch may leave: nothing of it, the snapshot, all."""
    snapshots = [persist for persist in batch if persist.snapshot is not None]
    halves = [model.interrupted_after_snapshot(snapshots[-1])] if snapshots else []
    return [model, *halves, completed(model, batch)]


def matches(model: Model, storage: Storage) -> bool:
    found = storage.recovered
    assert found is not None
    start = len(model.entries) - len(found.entries)
    wanted = [e.index for e in model.entries if e.index >= model.keep_from]
    return (
        found.hard_state == model.hard_state
        and found.snapshot == model.snapshot
        and start >= 0
        and found.entries == model.entries[start:]
        and (not wanted or (bool(found.entries) and found.entries[0].index <= wanted[0]))
    )


@st.composite
def effects(draw: st.DrawFn, model: Model, seq: int) -> Persist:
    """An effect such as the consensus core could give in that state."""
    term = model.hard_state.term
    floor = model.snapshot.meta.index
    state = None
    if draw(st.booleans()):
        state = hard_state(term + draw(st.integers(0, 2)), draw(st.sampled_from([None, "a", "b"])))
        term = state.term
    kind = draw(st.sampled_from(["append", "append", "append", "compact", "install", "state"]))
    effect = Persist(seq=seq, hard_state=state)
    if kind == "compact" and model.last_index > floor:
        index = draw(st.integers(floor + 1, model.last_index))
        at = next(e for e in model.entries if e.index == index)
        keep_from = LogIndex(draw(st.integers(max(0, index - 5), index + 1)))
        data = draw(st.binary(max_size=20)) * draw(st.integers(0, 100))
        return structs.replace(effect, snapshot=snapshot(index, at.term, data), keep_from=keep_from)
    if kind == "install":
        index = draw(st.integers(floor + 1, model.last_index + 5))
        old = next((e.term for e in model.entries if e.index == index), None)
        at_term = term if old is None or old != term else term + 1
        if at_term != term:
            effect = structs.replace(effect, hard_state=hard_state(at_term))
        new = snapshot(index, at_term, b"installed")
        keep_from = LogIndex(index + 1)
        effect = structs.replace(effect, snapshot=new, keep_from=keep_from, discard_log=True)
        if draw(st.booleans()):
            effect = structs.replace(effect, entries=(entry(index + 1, at_term),))
        return effect
    if kind in ("append", "install"):
        first = draw(st.integers(max(floor + 1, model.last_index - 3), model.last_index + 1))
        size = draw(st.sampled_from([0, 1, 60, 470, 511, 512, 700, 3000, 6000]))
        fill = draw(st.sampled_from([b"\0", b"\xa5", b"ab\0"]))
        payload = (fill * size)[:size]
        count = draw(st.integers(1, 4))
        new_entries = tuple(entry(first + step, term, payload) for step in range(count))
        effect = structs.replace(effect, entries=new_entries)
    return effect


def reopen(disk: FaultFileSystem) -> Storage:
    return Storage.open(PATH, filesystem=disk, segment_bytes=SEGMENT_BYTES)


def recover(disk: FaultFileSystem, data: st.DataObject, chance: random.Random) -> Storage:
    """Open, with the power going again meanwhile now and then."""
    if data.draw(st.integers(0, 3)) == 0:
        disk.cut_after = data.draw(st.integers(0, 12))
        with suppress(PowerCut):
            storage = reopen(disk)
            disk.cut_after = None
            return storage
        disk.cut_power(chance)
    disk.cut_after = None
    return reopen(disk)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), can_reserve=st.booleans(), seed=st.integers(0, 2**32))
def test_acknowledged_batches_survive_any_power_cut(
    data: st.DataObject, can_reserve: bool, seed: int
) -> None:
    chance = random.Random(seed)
    disk = FaultFileSystem(can_reserve=can_reserve, writeback=chance)
    storage = reopen(disk)
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    model = Model(GENESIS_HARD_STATE, GENESIS)
    seq = 0
    for _ in range(data.draw(st.integers(1, 12))):
        batch: list[Persist] = []
        drafted = model
        for _ in range(data.draw(st.integers(1, 3))):
            seq += 1
            batch.append(data.draw(effects(drafted, seq)))
            drafted = completed(drafted, batch[-1:])
        fault = data.draw(st.sampled_from(FAULTS))
        event(fault)
        written = write_with(fault, disk, storage, batch, data)
        if written and fault in ("none", "full, then room"):
            model = completed(model, batch)
            continue
        if fault == "sync fails" or (fault == "kill" and written):
            disk.kill_process()
        else:
            disk.cut_power(chance)
        storage = recover(disk, data, chance)
        allowed = [completed(model, batch)] if written else possible(model, batch)
        fitting = [state for state in allowed if matches(state, storage)]
        assert fitting, (allowed, storage.recovered)
        model = fitting[-1]
    disk.cut_power(chance)
    assert matches(model, reopen(disk))


FAULTS = ("none", "none", "cut", "cut later", "kill", "full", "full, then room", "sync fails")


def write_with(
    fault: str, disk: FaultFileSystem, storage: Storage, batch: list[Persist], data: st.DataObject
) -> bool:
    """Write under a fault; False when the batch was not acknowledged."""
    if fault == "cut":
        disk.cut_after = data.draw(st.integers(0, 12))
    if fault.startswith("full"):
        disk.budget_bytes = data.draw(st.integers(0, 9000))
    disk.fail_next_sync = fault == "sync fails"
    try:
        storage.write(batch)
    except (PowerCut, StorageFailed):
        return False
    except DiskFull:
        disk.budget_bytes = None
        if fault == "full":
            return False
        storage.write(batch)
    finally:
        disk.budget_bytes = None
        disk.cut_after = None
        disk.fail_next_sync = False
    return True
