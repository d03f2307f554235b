"""One run: nodes, a leader, a Redis, clients, their troubles, and the judgement on all of it.

First everything goes wrong that the profile knows, and invariants are checked at every step. Then
all faults are healed and every node must serve every key again; and once more when every value with
a time to live is gone, and every process is another one. At last the history of each key is checked
for linearizability.

Under local durability a crash or a lapsed lease may lose what was not written back. From such a
moment on the history of that key is not judged.
"""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import replace

from checker.history import NEVER_NS, Operation
from checker.linearizability import Verdict, check_history, failures
from distsync_node.cache.effects import Effect
from distsync_node.cache.events import Event
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.tables import DIRTY
from distsync_node.cache.types import Code, Durability, Found, Missing, OpId, Outcome, Refused
from distsync_node.cluster.leases import LeaseOptions
from distsync_node.errors import InvariantViolation
from sim.cache.checks import CacheChecks
from sim.cache.clients import Call, Client
from sim.cache.faults import Trouble
from sim.cache.host import Host
from sim.cache.leader import Leader
from sim.cache.model import LATE_MS, CacheModel
from sim.cache.profiles import Profile
from sim.cache.redis import Redis
from sim.kernel import US_PER_MS, US_PER_S, DriftingClock, Kernel, Violation
from sim.network import Network
from sim.results import Failure, Result

HEALED_WITHIN_S = 25.0
GONE_AFTER_S = 3.0 + LATE_MS / 1_000  # the longest time to live, and more
DRIFT_PPM = 9_000
CLIENTS = 7


class World:
    """Everything there is in a run."""

    def __init__(self, seed: int, profile: Profile) -> None:
        self.profile = profile
        self.kernel = Kernel(seed)
        self.rng = rng = self.kernel.rng("world")
        self.network = Network(self.kernel)
        self.background = rng.choice(((0.0, 0.0, 0.0), (0.01, 0.02, 0.03), (0.03, 0.05, 0.1)))
        self.redis = Redis(self.kernel, profile.grace_ms)
        self.mode = rng.choice(profile.durability)
        self.keys = [f"k{number}" for number in range(rng.choice(profile.keys))]
        self.slower = 3 if len(self.keys) == 1 else 1  # a history has to stay small enough to check
        self.hosts: dict[str, Host] = {}
        self.is_over = False
        self.heals = 0
        self.lossy: dict[str, int] = {}  # key -> since when it is not judged
        self.keys_of_calls: dict[tuple[str, int, OpId], str] = {}
        self.outcomes: Counter[str] = Counter()
        self.checks = CacheChecks(self)
        lease_options = LeaseOptions()
        self.leader = Leader(self, lease_options, self._clock())
        self.options = self._choose_options()
        for number in range(1, rng.choice(profile.nodes) + 1):
            name = f"n{number}"
            self.hosts[name] = Host(self, name, self._clock(), self.options, lease_options)
        self.clients = [Client(self, f"c{number}") for number in range(1, CLIENTS + 1)]
        self.nemesis = Trouble(self)

    def _clock(self) -> DriftingClock:
        drift = self.rng.choice((-DRIFT_PPM, 0, DRIFT_PPM, self.rng.randint(-DRIFT_PPM, DRIFT_PPM)))
        return DriftingClock(self.rng.randint(0, 10_000_000), drift // 2)

    def new_leader(self) -> None:
        """Another leads."""
        self.leader.replace(self._clock())

    def _choose_options(self) -> CacheOptions:
        rng = self.rng
        return CacheOptions(
            durability=self.mode,
            write_back_after_ms=rng.choice((20, 200, 1_000)),
            write_back_within_ms=rng.choice((300, 10_000)),
            recheck_copies_ms=rng.choice((1_000, 5_000)),
            max_bytes=rng.choice((2_500, 7_000, 1 << 20)),
            max_dirty_bytes=rng.choice((3_900, 1 << 20, 1 << 20)),
            report_bytes=rng.choice((100, 1 << 20)),
            write_backs_at_once=rng.choice((1, 2, 128)),
            mirror_wait_ms=rng.choice((40, 250)),
        )

    def options_of_process(self, options: CacheOptions) -> CacheOptions:
        """Return the options of a process that starts now."""
        if not self.profile.mixed:
            return options
        return replace(options, durability=self.rng.choice(list(Durability)))

    def key_has_ttl(self, key: str) -> bool:
        """Half of the keys have values that expire."""
        return int(key[1:]) % 2 == 1

    def padded(self, value: str) -> bytes:
        """Return a value of some size."""
        return f"{value} {'x' * self.rng.choice((0, 50, 200))}".encode()

    # --- Observed -----------------------------------------------------------------------------

    def after_step(self, host: Host, event: Event, effects: list[Effect]) -> None:
        """A node has taken an event."""
        self.checks.after_step(host, event)

    def answered(self, host: Host, op: OpId, outcome: Outcome) -> None:
        """A client is told something."""
        self.checks.answered(host, op, outcome)

    def is_settled(self) -> bool:
        """Whether all nodes of the newest ring run, know it, and say that one may die."""
        ring = self.leader.ring
        hosts = {host.server: host for host in self.hosts.values() if host.alive}
        return all(
            server in hosts
            and hosts[server].node.context.epoch == ring.epoch
            and hosts[server].node.is_settled
            for server in ring.servers
        )

    def lost(self, key: str) -> None:
        """A value may be lost, as its durability allows."""
        self.lossy.setdefault(key, self.kernel.now_us)

    def lost_with(self, host: Host) -> None:
        """A node is about to be lost, or to be unable to say what it loses."""
        for key, line in host.node.lines.held.lru.items():
            if line.state in DIRTY and line.is_own:
                self.lost(key)
        for key, kept in host.node.kept.items():
            if kept.owner_of is not None:
                self.lost(key)

    # --- The run ------------------------------------------------------------------------------

    def run(self) -> Result:
        """Run, and judge."""
        failure = None
        try:
            self._run()
        except (Violation, InvariantViolation) as error:
            check = error.check if isinstance(error, Violation) else "invariant"
            detail = error.detail if isinstance(error, Violation) else str(error)
            last = traceback.extract_tb(error.__traceback__)[-1]
            failure = Failure(check=check, detail=f"{detail} ({last.name})")
        except Exception:
            failure = Failure(check="exception", detail=traceback.format_exc())
        return Result(
            seed=self.kernel.seed,
            profile=self.profile.name,
            failure=failure,
            trace_hash=self.kernel.trace_hash(),
            faults=self.kernel.faults,
            outcomes=self.outcomes,
            virtual_s=self.kernel.now_us / US_PER_S,
            steps=self.kernel.steps,
            operations=sum(len(client.calls) for client in self.clients),
            trace=tuple(self.kernel.last_lines(4_000)) if failure is not None else (),
        )

    def _run(self) -> None:
        kernel = self.kernel
        for host in self.hosts.values():
            kernel.after(self.rng.randint(0, 50) * US_PER_MS, host.start)
        self.network.loss, self.network.duplication, self.network.reordering = self.background
        self.network.delay_us = self.profile.delay_us
        kernel.run_until(US_PER_S)
        for client in self.clients:
            client.start()
        self.nemesis.start()
        kernel.run_until(int((1 + self.profile.chaos_s) * US_PER_S))
        self._heal()
        self._require_progress("reader")
        self._restart_all()
        self._require_progress("late reader")
        self._judge()

    def _heal(self) -> None:
        self.nemesis.stop()
        self.heals += 1
        self.kernel.trace("healed")
        self.network.heal()
        self.redis.heal()
        for host in self.hosts.values():
            if not host.alive:
                host.start()
            elif host.paused:
                host.resume()
            if host.draining:
                host.crash()
                host.start()
        self.kernel.run_until(self.kernel.now_us + 2 * US_PER_S)
        self.is_over = True

    def _restart_all(self) -> None:
        """Go on with what Redis has, when all of it has been there for a while."""
        self.kernel.run_until(self.kernel.now_us + int(GONE_AFTER_S * US_PER_S))
        for host in self.hosts.values():
            host.crash()
        self.kernel.run_until(self.kernel.now_us + US_PER_S)
        for host in self.hosts.values():
            host.start()

    def _require_progress(self, name: str) -> None:
        """Every node serves every key, in the end."""
        kernel = self.kernel
        deadline_us = kernel.now_us + int(HEALED_WITHIN_S * US_PER_S)
        reader = Client(self, name)
        self.clients.append(reader)
        for host in list(self.hosts.values()):
            for key in self.keys:
                while not self._is_read(reader, host, key, deadline_us):
                    pass
        kernel.run_until(
            deadline_us,
            lambda: all(call.ended for client in self.clients for call in client.calls),
        )
        waiting = [
            f"{call.client.name} {call.op} {call.key}"
            for client in self.clients
            for call in client.calls
            if not call.ended
        ]
        if waiting:
            raise Violation("cache.progress", f"without an answer: {waiting}")

    def _is_read(self, reader: Client, host: Host, key: str, deadline_us: int) -> bool:
        kernel = self.kernel
        call: Call = reader.read(host, key)
        kernel.run_until(kernel.now_us + 4 * US_PER_S, lambda: call.ended)
        outcome = call.outcome
        if isinstance(outcome, Found | Missing):
            return True
        if isinstance(outcome, Refused) and outcome.code is Code.LINE_LOST:
            return True
        if kernel.now_us > deadline_us:
            raise Violation("cache.progress", f"{host.name} does not serve {key}: {outcome}")
        return False

    def _judge(self) -> None:
        operations = [
            self._judged(call.operation()) for client in self.clients for call in client.calls
        ]
        history = [operation for operation in operations if operation is not None]
        for report in failures(check_history(history, CacheModel())):
            if report.verdict is Verdict.VIOLATION:
                raise Violation("cache.linearizable", report.detail)
            # Too many calls whose outcome nobody knows; `python -m sim.cache` bounds how often.
            self.kernel.faults["unjudged"] += 1

    def _judged(self, operation: Operation) -> Operation | None:
        """Return what the checker is to see of a call: not what certainly did nothing."""
        if operation.result is not None and operation.result["status"] not in ("ok", "mismatch"):
            return None
        since_us = self.lossy.get(operation.key)
        if since_us is None or operation.return_ns < since_us * 1_000:
            return operation
        if operation.call_ns >= since_us * 1_000:
            return None
        return Operation(
            client=operation.client,
            key=operation.key,
            op=operation.op,
            call_ns=operation.call_ns,
            return_ns=NEVER_NS,
            args=operation.args,
        )


def run_seed(seed: int, profile: Profile) -> Result:
    """Run one seed."""
    return World(seed, profile).run()
