"""The four safety properties of Raft (thesis figure 3.2) under random schedules.

Messages are lost, repeated, delayed and reordered; disks write when they like and forget what was
queued when their member crashes; clocks run apart without bound; members come and go.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from distsync_node.raft.types import (
    AppendResponse,
    Apply,
    ConfigOperation,
    Entry,
    LogIndex,
    MemberId,
    RaftEffect,
    RaftOptions,
    ReadReady,
    Restore,
    Role,
    RoleChanged,
    Send,
    SnapshotResponse,
    Term,
    VoteResponse,
)
from unit.raft.cluster import Cluster, Disk, Flight

OPTIONS = RaftOptions(
    max_append_bytes=200,
    max_append_entries=3,
    max_inflight_requests=2,
    snapshot_chunk_bytes=150,
    retained_entries=2,
    promote_max_lag=2,
)
MEMBERS = "12345"


@dataclass
class Witness:
    """Sees every effect and remembers what must never be contradicted."""

    leaders: dict[Term, MemberId] = field(default_factory=dict)
    votes: dict[tuple[MemberId, Term], MemberId] = field(default_factory=dict)
    committed: dict[LogIndex, tuple[Entry, Term]] = field(default_factory=dict)
    commit_index: int = 1
    read_floor: dict[int, int] = field(default_factory=dict)

    def saw_leader(self, member_id: MemberId, term: Term) -> None:
        first = self.leaders.setdefault(term, member_id)
        assert first == member_id, f"term {term} has leaders {first} and {member_id}"

    def saw_vote(self, voter: MemberId, term: Term, candidate: MemberId) -> None:
        first = self.votes.setdefault((voter, term), candidate)
        assert first == candidate, f"{voter} voted in {term} for {first} and {candidate}"

    def saw_commit(self, entries: tuple[Entry, ...], term: Term) -> None:
        """Entries were applied by a member of that term, so they were committed in it at last."""
        for entry in entries:
            first, _ = self.committed.setdefault(entry.index, (entry, term))
            assert first == entry, f"committed at {entry.index}: {first} and {entry}"
            self.commit_index = max(self.commit_index, entry.index)


def holds(disk: Disk, index: int) -> bool:
    """Whether everything up to an index is on disk."""
    last = disk.entries[-1].index if disk.entries else 0
    return max(last, disk.snapshot.meta.index) >= index


class RaftSafety(RuleBasedStateMachine):
    """Random schedules over a group of three to five."""

    @initialize(voters=st.sampled_from(["123", "12345", "12"]))
    def start(self, voters: str) -> None:
        self.witness = Witness()
        self.cluster = Cluster(voters, options=OPTIONS, auto_disk=False)
        self.cluster.watchers.append(self.watch)
        self.present = list(voters)

    def watch(self, member_id: MemberId, effect: RaftEffect) -> None:
        witness, machine = self.witness, self.cluster.machines[member_id]
        match effect:
            case RoleChanged(role=Role.LEADER, term=term):
                witness.saw_leader(member_id, term)
                self.check_leader_completeness(member_id, term)
            case Apply(entries=entries):
                witness.saw_commit(entries, self.cluster[member_id].term)
            case Restore(snapshot=snapshot):
                machine.restore(snapshot)
                witness.saw_commit(tuple(machine.applied), self.cluster[member_id].term)
            case Send(to=to, message=VoteResponse(granted=True, term=term)):
                witness.saw_vote(member_id, term, to)
                assert machine.disk.hard_state.term >= term
                assert machine.disk.hard_state.term > term or machine.disk.hard_state.vote == to
            case Send(message=AppendResponse(accepted=True, match_index=match)):
                assert holds(machine.disk, match), f"{member_id} vouches for {match}"
            case Send(message=SnapshotResponse(installed=True, index=index)):
                assert holds(machine.disk, index), f"{member_id} vouches for snapshot {index}"
            case ReadReady(ref=ref, index=index):
                floor = witness.read_floor[ref]
                assert index >= floor, f"stale read at {index}, {floor} was committed before"
            case _:
                pass

    def check_leader_completeness(self, member_id: MemberId, elected_in: Term) -> None:
        log = self.cluster[member_id]._state.log
        for index, (entry, committed_in) in self.witness.committed.items():
            if index > log.base_index and committed_in < elected_in:
                assert index <= log.last_index, f"leader {member_id} lacks committed {index}"
                assert log.entry(index) == entry, f"leader {member_id} differs at {index}"

    # --- Helpers ------------------------------------------------------------------------------

    def running(self) -> list[str]:
        return [m.id for m in self.cluster.machines.values() if m.core is not None]

    def pick(self, number: int) -> str | None:
        running = self.running()
        return running[number % len(running)] if running else None

    def leaders(self) -> list[str]:
        return [m for m in self.running() if self.cluster[m].role is Role.LEADER]

    def pick_leader(self, number: int) -> str | None:
        leaders = self.leaders()
        return leaders[number % len(leaders)] if leaders else None

    # --- Rules --------------------------------------------------------------------------------

    @rule(number=st.integers(0, 4))
    def timeout(self, number: int) -> None:
        member_id = self.pick(number)
        if member_id is not None:
            self.cluster.tick_early(member_id)

    @rule(number=st.integers(0, 4), duration_ms=st.integers(1, 900))
    def clock_runs(self, number: int, duration_ms: int) -> None:
        member_id = self.pick(number)
        if member_id is not None:
            ahead_ms = self.cluster.ahead_ms.get(member_id, 0)
            self.cluster.ahead_ms[member_id] = ahead_ms + duration_ms

    @rule(numbers=st.lists(st.integers(0, 50), min_size=1, max_size=12))
    def deliver_some(self, numbers: list[int]) -> None:
        for number in numbers:
            flights = self.cluster.in_flight
            if flights:
                self.cluster.deliver(flights.pop(number % len(flights)))

    @rule(among=st.sets(st.sampled_from(MEMBERS), min_size=2), steps=st.integers(1, 60))
    def exchange(self, among: set[str], steps: int) -> None:
        """Some members get on well for a while: messages in order, disks at once."""
        for _ in range(steps):
            flight = next(
                (f for f in self.cluster.in_flight if f.sender in among and f.to in among), None
            )
            for member_id in among & set(self.running()):
                self.cluster.write(member_id)
            if flight is not None:
                self.cluster.in_flight.remove(flight)
                self.cluster.deliver(flight)

    @rule(among=st.sets(st.sampled_from(MEMBERS), min_size=2), number=st.integers(0, 4))
    def campaign(self, among: set[str], number: int) -> None:
        """A member times out and reaches some others."""
        candidates = sorted(among & set(self.running()))
        if candidates:
            self.cluster.tick_early(candidates[number % len(candidates)])
            for member_id in candidates:
                self.cluster.ahead_ms[member_id] = self.cluster.ahead_ms.get(member_id, 0) + 400
            self.exchange(among, 40)

    @rule(numbers=st.lists(st.integers(0, 50), min_size=1, max_size=20))
    def drop(self, numbers: list[int]) -> None:
        for number in numbers:
            flights = self.cluster.in_flight
            if flights:
                flights.pop(number % len(flights))

    @rule(number=st.integers(0, 50))
    def repeat(self, number: int) -> None:
        flights: list[Flight] = self.cluster.in_flight
        if flights:
            flights.append(flights[number % len(flights)])

    @rule(number=st.integers(0, 4), count=st.integers(1, 3))
    def write(self, number: int, count: int) -> None:
        member_id = self.pick(number)
        if member_id is not None:
            self.cluster.write(member_id, count)

    @rule(number=st.integers(0, 4))
    def crash(self, number: int) -> None:
        member_id = self.pick(number)
        if member_id is not None:
            self.cluster.crash(member_id)

    @precondition(lambda self: len(self.running()) < len(self.cluster.machines))
    @rule()
    def restart_all(self) -> None:
        for machine in list(self.cluster.machines.values()):
            if machine.core is None:
                self.cluster.restart(machine.id)

    @rule(number=st.integers(0, 4), count=st.integers(1, 5))
    def propose(self, number: int, count: int) -> None:
        leader = self.pick_leader(number)
        if leader is not None:
            for _ in range(count):
                self.cluster.propose(leader, f"from {leader}, {self.cluster.ref}")

    @rule(number=st.integers(0, 4))
    def read(self, number: int) -> None:
        leader = self.pick_leader(number)
        if leader is not None:
            self.witness.read_floor[self.cluster.ref + 1] = self.witness.commit_index
            self.cluster.read(leader)

    @rule(number=st.integers(0, 4), other=st.sampled_from(MEMBERS))
    def transfer(self, number: int, other: str) -> None:
        leader = self.pick_leader(number)
        if leader is not None:
            self.cluster.transfer(leader, other)

    @rule(number=st.integers(0, 4))
    def compact(self, number: int) -> None:
        member_id = self.pick(number)
        if member_id is not None and self.cluster.machines[MemberId(member_id)].applied:
            self.cluster.compact(member_id)

    @rule(
        number=st.integers(0, 4),
        operation=st.sampled_from(
            [ConfigOperation.PROMOTE, ConfigOperation.DEMOTE, ConfigOperation.REMOVE]
        ),
        other=st.sampled_from(MEMBERS),
    )
    def change_membership(self, number: int, operation: ConfigOperation, other: str) -> None:
        leader = self.pick_leader(number)
        if leader is not None:
            self.cluster.propose_config(leader, operation, other)

    @rule(number=st.integers(0, 4), other=st.sampled_from(MEMBERS))
    def add_learner(self, number: int, other: str) -> None:
        leader = self.pick_leader(number)
        if leader is not None:
            if MemberId(other) not in self.cluster.machines:
                self.cluster.add_machine(other)
            self.cluster.propose_config(leader, ConfigOperation.ADD_LEARNER, other)

    def teardown(self) -> None:
        """When the faults end, somebody leads, and what it commits reaches every member."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.auto_disk = True
        for machine in list(cluster.machines.values()):
            if machine.core is None:
                cluster.restart(machine.id)
            cluster.write(machine.id)
        cluster.wait(10_000)
        last = max(self.leaders(), key=lambda name: cluster[name].term)
        cluster.propose(last, "after all")
        cluster.wait(1_000)
        for member in cluster[last].configuration.members:
            assert cluster.payloads(member.id)[-1:] == ["after all"]

    # --- Properties ---------------------------------------------------------------------------

    @invariant()
    def logs_match(self) -> None:
        """Where two logs agree on a term they agree on everything up to there (as far as kept)."""
        if not hasattr(self, "cluster"):
            return
        logs = [self.cluster[member_id]._state.log for member_id in self.running()]
        for number, left in enumerate(logs):
            for right in logs[number + 1 :]:
                agree = False
                last = min(left.last_index, right.last_index)
                for index in range(last, max(left.base_index, right.base_index), -1):
                    agree = agree or left.term_at(index) == right.term_at(index)
                    assert not agree or left.entry(index) == right.entry(index)


TestRaftSafety = RaftSafety.TestCase
TestRaftSafety.settings = settings(
    max_examples=120,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
