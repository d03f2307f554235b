"""One run: a cluster, its clients, its troubles, and the judgement on all of it.

A run has three parts. In the chaos everything goes wrong that the profile knows, and safety is
judged at every event. Then all faults are healed and progress is required: a leader, an end for
every request, the end of every lease, one state on all members. At last the history of every lock
is checked for linearizability.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from typing import Any

from checker.history import Operation
from checker.linearizability import check_history, failures
from checker.models import LockModel
from distsync_node.errors import InvariantViolation
from distsync_node.locks.commands import Acquire, Granted, RefusalCode, Refused, Release
from distsync_node.raft.types import (
    Entry,
    MemberId,
    Persist,
    RaftOptions,
    Role,
    RoleChanged,
    Snapshot,
)
from distsync_node.replica.types import (
    Bootstrap,
    PeerMessage,
    ReadAt,
    ReplicaOptions,
    Reply,
)
from sim.client import Attempt, Client
from sim.faults import Trouble
from sim.forming import Founder, member_of
from sim.host import FinalEffect, Host
from sim.kernel import (
    TRACE_LINES_KEPT,
    US_PER_MS,
    US_PER_S,
    DriftingClock,
    Kernel,
    Violation,
)
from sim.lock_checks import LockChecks
from sim.network import Network
from sim.operator import Operator
from sim.profiles import Profile
from sim.raft_checks import RaftChecks
from sim.results import Failure, Result
from sim.ring_checks import RingChecks
from sim.workload import live

LEADER_WITHIN_S = 6.0
FINISHED_WITHIN_S = 24.0
CHECK_BUDGET = 400_000
DRIFT_PPM = 10_000


class World:
    """Everything there is in a run; also the observer of all hosts."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self.profile = profile
        self.kernel = Kernel(seed)
        self.rng = self.kernel.rng("world")
        self.network = Network(self.kernel)
        self.hosts: dict[str, Host] = {}
        self.history: list[Operation] = []
        self.raft = RaftChecks(self.kernel)
        self.locks = LockChecks(self.kernel, self.raft)
        self.ring = RingChecks(self.hosts)
        self.forming = profile.forming
        self.leaving_ids: set[MemberId] = set()
        self.founder_lists: set[tuple[MemberId, ...]] = set()
        self.may_stall = False
        self.heals = 0
        self.background = self.rng.choice(((0.0, 0.0, 0.0), (0.01, 0.01, 0.02), (0.05, 0.05, 0.1)))
        if self.forming:
            self.background = self.rng.choice(((0.0, 0.0, 0.1), (0.1, 0.1, 0.4)))
        self._wiped_ids: set[MemberId] = set()
        self._clusters = 0
        self._same_cluster_id = self.rng.random() < 0.5
        self.names_addresses = self._same_cluster_id
        self._upgrades = self.rng.random() < 0.15
        self._first = False
        self._raft_options = self._choose_raft_options()
        self._options = self._choose_options()
        count = self.rng.choice(profile.nodes)
        self._listed = tuple(f"n{number}" for number in range(1, count + 1))
        for name in self._listed:
            self._make_host(name)
        self.clients = [
            Client(self, f"c{number}", self._clock()) for number in range(1, profile.clients + 1)
        ]
        self.operator = Operator(self, "operator", self._clock())
        self.nemesis = Trouble(self)

    # --- Making -------------------------------------------------------------------------------

    def _choose_raft_options(self) -> RaftOptions:
        rng, profile = self.rng, self.profile
        return RaftOptions(
            snapshot_chunk_bytes=rng.choice(profile.snapshot_chunk_bytes),
            retained_entries=rng.choice(profile.retained_entries),
            max_append_entries=rng.choice((3, 512)),
            max_inflight_requests=rng.choice((1, 8)),
            promote_max_lag=rng.choice((20, 1_000)),
            eager_commit=rng.random() < 0.3,
        )

    def _choose_options(self) -> ReplicaOptions:
        rng, profile = self.rng, self.profile
        return ReplicaOptions(
            voters=rng.choice((3, 5, 7)),
            max_inflight_entries=rng.choice((1, 2, 4)),
            pipeline_after_ms=rng.choice((0, 5)),
            flush_bytes=rng.choice((600, 512 << 10)),
            snapshot_entries=rng.choice(profile.snapshot_entries),
            hash_interval=rng.choice((7, 64)),
            max_pending=rng.choice((4, 20_000)) if rng.random() < 0.2 else 20_000,
        )

    def _clock(self) -> DriftingClock:
        offset_ms = self.rng.randint(0, 10_000_000)
        return DriftingClock(offset_ms, self.rng.randint(-DRIFT_PPM, DRIFT_PPM))

    def _make_host(self, name: str) -> Host:
        host = Host(
            self.kernel,
            self.network,
            self.hosts,
            name,
            clock=self._clock(),
            options=self._options,
            raft_options=self._raft_options,
            observer=self,
        )
        self.hosts[name] = host
        Founder(self, host, self._listed).start()
        host.start()
        return host

    def add_host(self) -> Host:
        """Put up a new, empty node; nobody adds one of the version before."""
        if self._upgrades:
            self._options = replace(self._options, supported_versions=(1, 2))
        return self._make_host(f"n{len(self.hosts) + 1}")

    def new_cluster_id(self) -> str:
        """Return the id of a cluster about to be created."""
        self._clusters += 1
        return "cluster" if self._same_cluster_id else f"cluster-{self._clusters}"

    # --- Life and death -----------------------------------------------------------------------

    def crash(self, host: Host) -> None:
        """Crash a host."""
        host.crash()

    def restart(self, host: Host) -> None:
        """Start a host that is down, perhaps after a reboot and with the next version."""
        if host.alive:
            return
        if self.rng.random() < 0.4:
            host.clock = host.clock.rebooted(self.rng.randint(0, 100_000), self.kernel.now_us)
            self.kernel.faults["clock_reset"] += 1
        if self._upgrades:
            host.options = replace(host.options, supported_versions=(1, 2))
        host.start()

    @property
    def lost_ids(self) -> set[MemberId]:
        """Members that count for the quorum and will never answer again, or not for long."""
        configuration = self.raft.configuration
        gone = self._wiped_ids | self.leaving_ids
        if not configuration.members:
            return set(gone)
        return {member.id for member in configuration.members if member.id in gone}

    def may_lose_disk(self, host: Host) -> bool:
        """Whether the quorum survives the loss of this disk, whatever is under way.

        A change of the membership takes effect when it is applied; until the others know of it,
        the group depends on the voters of the configuration before.
        """
        if not host.alive or self.lost_ids:
            return False
        configuration = self.raft.configuration
        if not configuration.members:
            return True
        others = [one for one in configuration.voters if one != host.member_id]
        known = sum(self._has_noted(one, configuration.index) for one in others)
        return len(configuration.voters) >= 3 and known == len(others)

    def _has_noted(self, member_id: MemberId, index: int) -> bool:
        disk = self.raft.disks.get(member_id)
        if disk is None or not self.raft.is_kin(disk):
            return False
        noted = disk.hard_state.commit if disk.hard_state is not None else 0
        covered = disk.snapshot.meta.index if disk.snapshot is not None else 0
        return max(noted, covered) >= index

    def wipe(self, host: Host) -> None:
        """Lose a host's process and disk; it will come back empty."""
        host.crash()
        self._wiped_ids.add(host.member_id)
        if not self.raft.configuration.members and not self._is_founded_without(host):
            # Who held the list of founders is gone. Those that joined it on its word wait for it
            # for ever: nobody can know that it did not come to be. An operator has to archive them.
            self.may_stall = True
        host.wipe()

    def _is_founded_without(self, host: Host) -> bool:
        """Whether a quorum of the founders holds the genesis, without that one; or nobody has."""
        own = host.disk.snapshot
        if own is None:
            return True
        voters = own.meta.configuration.voters
        others = [voter for voter in voters if voter != host.member_id]
        holding = [
            voter
            for voter in others
            if (disk := self.raft.disks.get(voter)) is not None
            and disk.snapshot is not None
            and disk.snapshot.meta.configuration.members
        ]
        return len(holding) > len(voters) // 2

    def leader(self) -> Host | None:
        """Return the host that leads the highest term, if one does."""
        best: Host | None = None
        best_term = 0
        for host in self.hosts.values():
            raft = host.replica.raft
            leads = host.state == "member" and raft is not None and raft.role is Role.LEADER
            if leads and raft is not None and raft.term > best_term:
                best, best_term = host, raft.term
        return best

    def serving_hosts(self) -> list[Host]:
        """Return whom clients know."""
        return list(self.hosts.values())

    # --- What hosts tell ----------------------------------------------------------------------

    def applying(self, host: Host, entry: Entry) -> None:
        """Judge an entry before it is applied."""
        self._first = self.raft.applied(host, entry)

    def applied(self, host: Host, entry: Entry) -> None:
        """Judge the state after it."""
        self.locks.applied(host, entry, first=self._first)
        if self._first:
            self.ring.applied(host, entry)

    def restored(self, host: Host, snapshot: Snapshot) -> None:
        """Judge a state that came from the leader."""
        self.kernel.faults["snapshot_installed"] += 1
        self.kernel.trace(host.name, "restored", snapshot.meta.index)
        self.raft.restored(host, snapshot)
        self.locks.restored(host, snapshot.meta.index)

    def started(self, host: Host) -> None:
        """A process starts."""
        self.raft.started(host)

    def founded(self, host: Host) -> None:
        """The first state of a member is on its disk."""
        self.raft.started(host)
        self.raft.founded(host, self.founder_lists)

    def sending(self, host: Host, to: MemberId, message: PeerMessage) -> None:
        """A message leaves."""
        kind = type(message).__name__
        self.kernel.trace(
            host.name,
            kind,
            to,
            getattr(message, "term", 0),
            getattr(message, "prev_index", getattr(message, "match_index", "")),
            len(getattr(message, "entries", ())),
        )
        self.raft.sending(host, to, message)

    def persisting(self, host: Host, effect: Persist) -> None:
        """A write goes to the disk."""
        last = effect.entries[-1].index if effect.entries else 0
        self.kernel.trace(host.name, "persist", effect.seq, last, effect.hard_state is not None)
        self.raft.persisting(host, effect)

    def role_changed(self, host: Host, effect: RoleChanged) -> None:
        """Role, term or leader changed."""
        if effect.role is Role.LEADER:
            self.kernel.faults["election"] += 1
        self.raft.role_changed(host, effect)

    def answering(self, host: Host, attempt: Attempt, effect: FinalEffect) -> None:
        """Judge an answer as it leaves."""
        if isinstance(effect, ReadAt) and attempt.read is not None:
            self._answer_read(host, attempt)
        if not isinstance(effect, Reply) or attempt.command is None:
            return
        command, outcome = attempt.command, effect.outcome
        match command, outcome:
            case Acquire(), Granted():
                self.locks.granted(host, command.key, outcome, host.applied_before)
            case Acquire(), Refused(code=RefusalCode.LOCK_LOST):
                self.locks.lost(host, command.key)
            case _, Refused(code=RefusalCode.CANCELLED) if not attempt.abandoned:
                raise Violation("client.cancelled", f"{host.name}: {command}")
            case Release(), outcome if not isinstance(outcome, Refused):
                self.locks.released(host, command.name, command.token)
            case _:
                pass

    def _answer_read(self, host: Host, attempt: Attempt) -> None:
        read = attempt.read
        raft = host.replica.raft
        if read is None:
            return
        self.locks.read(host, read.known_index)
        read.index = raft.applied_index if raft is not None else 0
        view = host.replica.machine.lock_view(read.name)
        read.holders = [] if view is None else [_seen(holder) for holder in view.holders]

    # --- A run --------------------------------------------------------------------------------

    def run(self) -> Result:
        """Run to the end, or to the first broken promise."""
        failure: Failure | None = None
        try:
            self._run()
        except Violation as violation:
            failure = Failure(check=violation.check, detail=violation.detail)
        except InvariantViolation as violation:
            failure = Failure(check=f"invariant ({violation})"[:90], detail=repr(violation))
        except Exception as error:
            detail = traceback.format_exc()
            failure = Failure(check=f"exception ({type(error).__name__})", detail=detail)
        kernel = self.kernel
        return Result(
            seed=kernel.seed,
            profile=self.profile.name,
            failure=failure,
            trace_hash=kernel.trace_hash(),
            faults=kernel.faults,
            virtual_s=kernel.now_us / US_PER_S,
            steps=kernel.steps,
            operations=sum(client.operations for client in self.clients),
            entries=self.raft.last_index,
            trace=tuple(kernel.last_lines(TRACE_LINES_KEPT)) if failure is not None else (),
        )

    def _run(self) -> None:
        self._begin()
        self.kernel.run_until(int(self.profile.chaos_s * US_PER_S))
        self._heal()
        if self._finds_leader():
            self._require_end()
        elif self.may_stall and not self.raft.configuration.members:
            self.kernel.faults["stalled_forming"] += 1
        else:
            raise Violation("liveness.leader", f"none {LEADER_WITHIN_S} s after healing")
        self._check_history()

    def _begin(self) -> None:
        network = self.network
        network.loss, network.duplication, network.reordering = self.background
        if not self.profile.forming:
            members = tuple(member_of(host) for host in self.hosts.values())
            self.founder_lists.add(tuple(member.id for member in members))
            cluster_id = self.new_cluster_id()
            for host in self.hosts.values():
                host.call(
                    lambda now_ms, ref: Bootstrap(
                        now_ms=now_ms, ref=ref, cluster_id=cluster_id, members=members
                    ),
                    _ignore,
                )
        for client in self.clients:
            self.kernel.after(
                self.rng.randint(0, 600) * US_PER_MS, lambda one=client: one.start(live(one))
            )
        self.nemesis.start()

    def _heal(self) -> None:
        """End every fault."""
        self.kernel.trace("heal")
        self.heals += 1
        self.nemesis.stop()
        self.network.heal()
        for host in self.hosts.values():
            host.disk.full = False
            host.disk.sync_us = (100, 900)
            self.restart(host)
            host.resume()
        for client in self.clients:
            client.finishing = True

    # --- Progress -----------------------------------------------------------------------------

    def _finds_leader(self) -> bool:
        end_us = self.kernel.now_us + int(LEADER_WITHIN_S * US_PER_S)
        self.kernel.run_until(end_us, self._has_ready_leader)
        return self._has_ready_leader()

    def _has_ready_leader(self) -> bool:
        leader = self.leader()
        return leader is not None and leader.replica.is_ready_leader

    def _require_end(self) -> None:
        end_us = self.kernel.now_us + int(FINISHED_WITHIN_S * US_PER_S)
        self.kernel.run_until(end_us, lambda: not self._unfinished(full=False))
        unfinished = self._unfinished(full=True)
        if unfinished:
            raise Violation("liveness.unfinished", "; ".join(unfinished))

    def _unfinished(self, *, full: bool) -> list[str]:
        """Return what is still to be done; without `full` the first thing found."""
        found = [f"client {client.name} waits" for client in self.clients if not client.idle]
        if found and not full:
            return found
        if not self.operator.idle:
            found.append("the operator waits")
        leader = self.leader()
        if leader is None:
            return [*found, "no leader"]
        counts = leader.replica.machine.counts()
        if counts.grants or counts.sessions or counts.waiting_requests:
            found.append(f"leases that do not end: {counts}")
        if found and not full:
            return found
        found.extend(self._unconverged(leader))
        return found

    def _unconverged(self, leader: Host) -> list[str]:
        found = []
        raft = leader.replica.raft
        state_hash = leader.replica.machine.state_hash()
        for member in leader.replica.configuration.members:
            host = self.hosts[member.name]
            replica = host.replica
            if self.forming and self._has_strayed(host, leader):
                continue
            if host.member_id != member.id:
                found.append(f"{member.id} is gone and still a member")
                continue
            applied = replica.raft.applied_index if replica.raft is not None else 0
            if raft is None or applied != raft.applied_index:
                found.append(f"{host.name} applied {applied} ({host.state})")
            elif replica.machine.state_hash() != state_hash:
                raise Violation("state.diverged", f"{host.name} at the end")
        return found

    def _has_strayed(self, host: Host, leader: Host) -> bool:
        """Whether it got into a cluster that never came to be; an operator has to archive it."""
        own, main = host.replica, leader.replica
        kin = (own.cluster_id, own.founders)
        return bool(own.founders) and kin != (main.cluster_id, main.founders)

    def _check_history(self) -> None:
        reports = check_history(self.history, LockModel(slack_ms=10), budget=CHECK_BUDGET)
        bad = failures(reports)
        if bad:
            verdict = bad[0].verdict.value
            raise Violation(f"history.{verdict}", "\n".join(report.detail for report in bad))
        for host in self.hosts.values():
            host.replica.check_invariants()


def _seen(holder: Any) -> dict[str, Any]:
    return {
        "owner": holder.owner,
        "token": holder.token,
        "mode": "shared" if holder.mode else "exclusive",
    }


def _ignore(_: FinalEffect) -> None:
    """The state of the nodes says what became of it."""


def run_seed(seed: int, profile: Profile) -> Result:
    """Run one seed."""
    return World(seed, profile).run()
