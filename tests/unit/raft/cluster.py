"""A small group of cores under full control: one network, one clock, a disk that forgets.

Nothing happens by itself. Effects are executed in the order given: messages go to `in_flight`,
Persists to the member's disk queue, and both wait there until they are delivered, dropped, written
or lost in a crash. The state machine is the list of what was applied; its snapshot is that list.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from distsync_node.raft.core import RaftCore
from distsync_node.raft.membership import apply_change, decode_change
from distsync_node.raft.state import Randomness
from distsync_node.raft.types import (
    Apply,
    Compact,
    ConfigChange,
    ConfigOperation,
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Member,
    MemberId,
    Persist,
    Persisted,
    Propose,
    ProposeConfig,
    RaftEffect,
    RaftEvent,
    RaftMessage,
    RaftOptions,
    ReadIndex,
    Receive,
    RecoveredState,
    Restore,
    Role,
    Send,
    Snapshot,
    SnapshotMeta,
    Term,
    Tick,
    TransferLeadership,
)

CLUSTER_ID = "test"


class FixedRandom:
    """Draws the same number each time, so that elections come when a test wants them."""

    def __init__(self, value: int) -> None:
        self.value = value

    def randint(self, a: int, b: int) -> int:
        return min(max(self.value, a), b)


def member(member_id: str, *, voter: bool = True) -> Member:
    return Member(MemberId(member_id), f"node-{member_id}", f"http://{member_id}:8180", "", voter)


def configuration(voters: str, learners: str = "", index: int = 1) -> Configuration:
    members = [member(v) for v in voters] + [member(v, voter=False) for v in learners]
    return Configuration(LogIndex(index), tuple(sorted(members, key=lambda m: m.id)))


def snapshot(config: Configuration, index: int = 1, term: int = 1, data: bytes = b"[]") -> Snapshot:
    meta = SnapshotMeta(CLUSTER_ID, LogIndex(index), Term(term), index, 1, config)
    return Snapshot(meta, data)


NOWHERE = Snapshot(
    SnapshotMeta(CLUSTER_ID, LogIndex(0), Term(0), 0, 1, Configuration(LogIndex(0), ())), b"[]"
)


class Disk:
    """What is written stays; what is queued is lost in a crash."""

    def __init__(self, first: Snapshot) -> None:
        self.hard_state = HardState(first.meta.term, None)
        self.snapshot = first
        self.entries: list[Entry] = []
        self.queue: list[Persist] = []

    def write_next(self) -> Persist:
        persist = self.queue.pop(0)
        if persist.hard_state is not None:
            self.hard_state = persist.hard_state
        if persist.snapshot is not None:
            self.snapshot = persist.snapshot
            if persist.discard_log:
                self.entries = []
            self.entries = [e for e in self.entries if e.index >= persist.keep_from]
        if persist.entries:
            first = persist.entries[0].index
            self.entries = [e for e in self.entries if e.index < first] + list(persist.entries)
        return persist

    def recovered(self, member_id: MemberId) -> RecoveredState:
        return RecoveredState(
            member_id=member_id,
            hard_state=self.hard_state,
            snapshot=self.snapshot,
            entries=tuple(self.entries),
        )


@dataclass(frozen=True, slots=True)
class Flight:
    """A message under way."""

    sender: MemberId
    to: MemberId
    message: RaftMessage


class Machine:
    """A core, its disk and its state machine."""

    def __init__(self, member_id: MemberId, first: Snapshot, random: Randomness) -> None:
        self.id = member_id
        self.disk = Disk(first)
        self.random = random
        self.core: RaftCore | None = None
        self.applied: list[Entry] = []

    @property
    def up(self) -> RaftCore:
        if self.core is None:
            raise LookupError(f"{self.id} is down")
        return self.core

    def restore(self, state: Snapshot) -> None:
        self.applied = msgspec.json.decode(state.data, type=list[Entry])

    def take_snapshot(self, index: int) -> Snapshot:
        """Encode the state after `index`, as the layer above would."""
        state = [entry for entry in self.applied if entry.index <= index]
        config = self.disk.snapshot.meta.configuration
        base = self.up._state.snapshot.meta
        config = base.configuration
        for entry in state:
            if entry.kind == EntryKind.CONFIG and entry.index > base.index:
                config = apply_change(config, decode_change(entry.payload), entry.index)
        last = state[-1]
        meta = SnapshotMeta(CLUSTER_ID, last.index, last.term, last.stamp_ms, 1, config)
        return Snapshot(meta, msgspec.json.encode(state))


class Cluster:
    """Several machines and what is between them."""

    def __init__(
        self,
        voters: str,
        learners: str = "",
        *,
        options: RaftOptions | None = None,
        random: Callable[[str], Randomness] | None = None,
        auto_disk: bool = True,
    ) -> None:
        self.options = options or RaftOptions()
        self.now_ms = 1_000
        self.ahead_ms: dict[str, int] = {}  # how far a member's clock runs ahead of the rest
        self.auto_disk = auto_disk
        self.genesis = snapshot(configuration(voters, learners))
        self.machines: dict[MemberId, Machine] = {}
        self.in_flight: list[Flight] = []
        self.cut: set[tuple[str, str]] = set()
        self.paused: dict[str, list[Flight]] = {}  # what waits in the sockets of stopped members
        self.effects: list[tuple[MemberId, RaftEffect]] = []
        self.watchers: list[Callable[[MemberId, RaftEffect], None]] = []
        self.ref = 0
        self._random = random or (lambda member_id: FixedRandom(400 + 50 * int(member_id, 36)))
        for member_id in voters + learners:
            self.add_machine(member_id, self.genesis)

    def add_machine(self, member_id: str, first: Snapshot = NOWHERE) -> Machine:
        """Start a machine; without a snapshot it belongs to nothing yet and waits."""
        machine = Machine(MemberId(member_id), first, self._random(member_id))
        self.machines[machine.id] = machine
        self.restart(member_id)
        return machine

    def __getitem__(self, member_id: str) -> RaftCore:
        return self.machines[MemberId(member_id)].up

    def clock(self, member_id: str) -> int:
        return self.now_ms + self.ahead_ms.get(member_id, 0)

    # --- Events -------------------------------------------------------------------------------

    def step(self, member_id: str, event: RaftEvent) -> list[RaftEffect]:
        machine = self.machines[MemberId(member_id)]
        effects = machine.up.step(event)
        machine.up.check_invariants()
        for effect in effects:
            self._execute(machine, effect)
        if self.auto_disk:
            self.write(member_id)
        return effects

    def _execute(self, machine: Machine, effect: RaftEffect) -> None:
        self.effects.append((machine.id, effect))
        for watcher in self.watchers:
            watcher(machine.id, effect)
        match effect:
            case Send():
                self.in_flight.append(Flight(machine.id, effect.to, effect.message))
            case Persist():
                machine.disk.queue.append(effect)
            case Apply():
                machine.applied.extend(effect.entries)
            case Restore():
                machine.restore(effect.snapshot)
            case _:
                pass

    def write(self, member_id: str, count: int | None = None) -> None:
        """Let the disk finish its queue, or `count` writes of it."""
        machine = self.machines[MemberId(member_id)]
        while machine.core is not None and machine.disk.queue and count != 0:
            persist = machine.disk.write_next()
            for send in persist.then:
                self.in_flight.append(Flight(machine.id, send.to, send.message))
                for watcher in self.watchers:
                    watcher(machine.id, send)
            self.step(member_id, Persisted(now_ms=self.clock(member_id), seq=persist.seq))
            count = None if count is None else count - 1

    def tick(self, member_id: str) -> list[RaftEffect]:
        """Move the clock to a member's deadline and tick it alone."""
        self.now_ms += max(0, self[member_id].next_deadline_ms() - self.clock(member_id))
        return self.step(member_id, Tick(now_ms=self.clock(member_id)))

    def tick_early(self, member_id: str) -> list[RaftEffect]:
        """Let one member's clock run ahead to its deadline and tick it; the others' stand."""
        early_ms = max(0, self[member_id].next_deadline_ms() - self.clock(member_id))
        self.ahead_ms[member_id] = self.ahead_ms.get(member_id, 0) + early_ms
        return self.step(member_id, Tick(now_ms=self.clock(member_id)))

    def wait(self, duration_ms: int) -> None:
        """Let time pass for everybody, delivering all the while."""
        end_ms = self.now_ms + duration_ms
        while True:
            self.settle()
            running = [
                m for m in self.machines.values() if m.core is not None and m.id not in self.paused
            ]
            waits = {m.id: m.up.next_deadline_ms() - self.clock(m.id) for m in running}
            due = min(waits, key=lambda member_id: (waits[member_id], member_id))
            if self.now_ms + waits[due] > end_ms:
                break
            self.tick(due)
        self.now_ms = end_ms

    def next_ref(self) -> int:
        self.ref += 1
        return self.ref

    def propose(self, member_id: str, payload: str) -> list[RaftEffect]:
        return self.step(
            member_id,
            Propose(
                now_ms=self.clock(member_id),
                ref=self.next_ref(),
                kind=EntryKind.COMMANDS,
                stamp_ms=self.now_ms,
                payload=payload.encode(),
            ),
        )

    def propose_config(
        self,
        member_id: str,
        operation: ConfigOperation,
        target: str,
        expected: int | None = None,
    ) -> list[RaftEffect]:
        return self.step(
            member_id,
            ProposeConfig(
                now_ms=self.clock(member_id),
                ref=self.next_ref(),
                stamp_ms=self.now_ms,
                change=ConfigChange(operation, member(target, voter=False)),
                expected_config_index=None if expected is None else LogIndex(expected),
            ),
        )

    def read(self, member_id: str) -> list[RaftEffect]:
        return self.step(member_id, ReadIndex(now_ms=self.clock(member_id), ref=self.next_ref()))

    def transfer(self, member_id: str, target: str | None = None) -> list[RaftEffect]:
        chosen = None if target is None else MemberId(target)
        return self.step(member_id, TransferLeadership(now_ms=self.clock(member_id), target=chosen))

    def compact(self, member_id: str, index: int | None = None) -> list[RaftEffect]:
        machine = self.machines[MemberId(member_id)]
        state = machine.take_snapshot(machine.up.applied_index if index is None else index)
        return self.step(member_id, Compact(now_ms=self.clock(member_id), snapshot=state))

    # --- Network ------------------------------------------------------------------------------

    def deliver(self, flight: Flight) -> None:
        """Deliver one message, which must have been taken out of `in_flight`."""
        machine = self.machines.get(flight.to)
        if machine is None or machine.core is None or (flight.sender, flight.to) in self.cut:
            return
        if flight.to in self.paused:
            self.paused[flight.to].append(flight)
            return
        event = Receive(now_ms=self.clock(flight.to), sender=flight.sender, message=flight.message)
        self.step(flight.to, event)

    def settle(self) -> None:
        """Deliver and write until nothing is under way; time stands still."""
        for _ in range(100_000):
            if not self.in_flight:
                return
            self.deliver(self.in_flight.pop(0))
        raise AssertionError("the group does not come to rest")

    def take(self, sender: str | None = None, to: str | None = None) -> list[Flight]:
        """Take messages out of the network, by sender and addressee."""
        taken = [f for f in self.in_flight if sender in (None, f.sender) and to in (None, f.to)]
        self.in_flight = [f for f in self.in_flight if f not in taken]
        return taken

    def isolate(self, member_id: str) -> None:
        for other in self.machines:
            self.cut |= {(member_id, other), (other, member_id)}

    def pause(self, member_id: str) -> None:
        """Stop a process: it sees neither time nor messages, and then all at once."""
        self.paused[member_id] = []

    def resume(self, member_id: str) -> None:
        for flight in self.paused.pop(member_id):
            self.deliver(flight)

    def heal(self) -> None:
        self.cut.clear()

    # --- Crashes ------------------------------------------------------------------------------

    def crash(self, member_id: str) -> None:
        """Stop a member; what its disk had not written is lost."""
        machine = self.machines[MemberId(member_id)]
        machine.core = None
        machine.disk.queue.clear()

    def restart(self, member_id: str) -> RaftCore:
        machine = self.machines[MemberId(member_id)]
        machine.disk.queue.clear()
        machine.restore(machine.disk.snapshot)
        recovered = machine.disk.recovered(machine.id)
        machine.core = RaftCore(recovered, self.options, machine.random, self.clock(member_id))
        machine.core.check_invariants()
        return machine.core

    # --- Short cuts ---------------------------------------------------------------------------

    def elect(self, member_id: str) -> RaftCore:
        """Make a member leader in quiet times."""
        for _ in range(20):
            if self[member_id].role is Role.LEADER:
                self.settle()
                return self[member_id]
            self.now_ms += self.options.election_timeout_max_ms
            self.tick(member_id)
            self.settle()
        raise AssertionError(f"{member_id} was not elected")

    def payloads(self, member_id: str) -> list[str]:
        """Return the commands a member's state machine has applied."""
        applied = self.machines[MemberId(member_id)].applied
        return [e.payload.decode() for e in applied if e.kind == EntryKind.COMMANDS]
