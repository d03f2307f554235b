"""How long nobody gets a lock after kill -9 of the leader, under load.

16 clients ask the leader; it is killed at a random moment; clients whose connection breaks go on
to the other nodes, and give up a request after 200 ms (an answer that went down with the leader
must not be waited for). The figure is the longest time between two grants after the kill, of
all clients together, up to the 200th grant of the new leader. Then the killed node is started
again, and when all nodes have their places the next kill follows.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.arithmetic import Ratio, judge, middle
from bench.driver import run_load, unique_run_id
from bench.load import LoadSpec
from bench.options import Say
from bench.systems import Cluster, DistSync, Etcd, running

CLIENTS = 16
GRANTS_AFTER = 200
LONGEST_S = 20.0
REQUEST_TIMEOUT_S = 0.2
WARMUP_S = 0.5
GOAL_S = 1.0


class Failover(msgspec.Struct, frozen=True, kw_only=True):
    """One system's times without grants; None in `times_s` is a repetition without a figure."""

    variant: str
    timing: str
    clients: int
    times_s: list[float | None]
    median_s: float | None
    longest_s: float | None
    errors: list[dict[str, int]]


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """A system under a timing."""

    variant: str
    timing: str
    dialect: str
    make: Callable[[Path], Cluster]


CONTENDERS = (
    Contender(
        variant="distsync",
        timing="default: heartbeat 100 ms, election 400-800 ms",
        dialect="distsync",
        make=DistSync,
    ),
    Contender(
        variant="etcd",
        timing="default: heartbeat 100 ms, election 1000-2000 ms",
        dialect="etcd-lock",
        make=Etcd,
    ),
    Contender(
        variant="etcd-500",
        timing="heartbeat 100 ms, election 500-1000 ms",
        dialect="etcd-lock",
        make=lambda directory: Etcd(directory, election_ms=500),
    ),
)


def measure(
    data_root: Path,
    repetitions: int,
    say: Say,
    contenders: tuple[Contender, ...] = CONTENDERS,
) -> list[Failover]:
    """All repetitions of all contenders."""
    generator = random.Random()
    found = []
    for contender in contenders:
        times_s: list[float | None] = []
        errors = []
        with running(contender.make(data_root / f"failover-{contender.variant}")) as cluster:
            for number in range(repetitions):
                silence_s, failed = _kill_once(cluster, contender, generator)
                times_s.append(silence_s)
                errors.append(failed)
                shown = "no figure" if silence_s is None else f"{silence_s:.3f} s"
                say(f"kill {number + 1:>2}  {contender.variant:<10} without grants: {shown}")
        found.append(gathered(contender.variant, contender.timing, times_s, errors))
    return found


def gathered(
    variant: str, timing: str, times_s: list[float | None], errors: list[dict[str, int]]
) -> Failover:
    """The repetitions of one system; median and longest of those that have a figure."""
    return Failover(
        variant=variant,
        timing=timing,
        clients=CLIENTS,
        times_s=times_s,
        median_s=middle(times_s),
        longest_s=max((one for one in times_s if one is not None), default=None),
        errors=errors,
    )


def ratios(found: list[Failover]) -> list[Ratio]:
    """DistSync's median beside its goal; the rest for information."""
    by_variant = {failover.variant: failover for failover in found}
    lines = []
    if ours := by_variant.get("distsync"):
        # A repetition that never came back must not vanish from the median.
        median_s = ours.median_s if None not in ours.times_s else None
        what = f"seconds without grants after kill -9 of the leader, median of {len(ours.times_s)}"
        lines.append(judge(what, median_s, goal=GOAL_S, bound="at_most"))
        lines.append(judge("the same, longest", ours.longest_s, goal=None, bound="at_most"))
    for variant in ("etcd", "etcd-500"):
        if theirs := by_variant.get(variant):
            what = f"the same for etcd ({theirs.timing}), median"
            lines.append(judge(what, theirs.median_s, goal=None, bound="at_most"))
    return lines


def _kill_once(
    cluster: Cluster, contender: Contender, generator: random.Random
) -> tuple[float | None, dict[str, int]]:
    leader = cluster.leader()

    spec = LoadSpec(
        dialect=contender.dialect,
        targets=cluster.targets(),
        first_target=leader,
        clients=CLIENTS,
        run_id=unique_run_id(contender.variant),
        duration_s=LONGEST_S,
        warmup_s=WARMUP_S,
        request_timeout_s=REQUEST_TIMEOUT_S,
        stop_after_grants=GRANTS_AFTER,
    )
    result = run_load(spec, while_running=lambda: kill_soon(cluster, leader, generator))
    cluster.restart(leader)
    return result.silence_s, result.errors


def kill_soon(cluster: Cluster, index: int, generator: random.Random) -> float:
    """Kill a node soon and give the moment."""
    time.sleep(generator.uniform(0.3, 0.6))  # anywhere between heartbeats: no phase is favoured
    killed_at_s = time.monotonic()
    cluster.kill(index)
    return killed_at_s


def points(found: list[Failover]) -> list[dict[str, Any]]:
    """For the report."""
    return [msgspec.to_builtins(failover) for failover in found]
