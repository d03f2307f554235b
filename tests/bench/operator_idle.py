"""What the operator takes while nothing changes: memory, CPU, writes.

    cd tests && python -m bench.operator_idle [--quick]

One operator, as its image runs it and with the rights of its chart, looks after 50 resources of
three nodes each. The API server is the double of the tests, by HTTP on loopback: without TLS, which
costs the operator some of its CPU on a real one. The 150 nodes are doubles too: they answer what
the operator asks and do nothing else. Measured is the process of the operator alone, over a while
in which every resource is looked at by its own slow timer at least once.

Exits 1 when a figure is beyond its goal. `--quick` has 5 resources and is held against no goal.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from bench.arithmetic import Ratio, cpu_share, judge
from bench.machine import process_cpu_s, resident_mib
from bench.options import Measured, Say, parse_options, run_benchmark
from kube.light_nodes import LightKubelet
from kube.operator_world import World, running_world

RSS_GOAL_MIB = 200.0 * 10**6 / 2**20
CPU_GOAL_SHARE = 0.05
SETTLE_S = 900.0
QUIET_S = 10.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much."""

    resources: int = 50
    idle_s: float = 180.0


QUICK = Plan(resources=5, idle_s=20.0)


class Idle(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. `writes` are those but for the renewals of the Lease, by kind."""

    resources: int
    settled_s: float
    idle_s: float
    passes: int
    cpu_share: float
    rss_mib: float
    writes: dict[str, int]
    lease_renewals: int


async def measure(directory: Path, plan: Plan, say: Say) -> Idle:
    """Make the clusters, let them settle, and look at the operator while nothing happens."""
    async with running_world(directory, kubelet=LightKubelet) as world:
        began_s = time.monotonic()
        operator = world.start_operator()
        for number in range(plan.resources):
            world.create(f"c{number:02}", replicas=3)
        await _settle(world, plan.resources)
        settled_s = time.monotonic() - began_s
        say(f"{plan.resources} resources ready and at rest after {settled_s:.0f} s")
        writes, looked = world.api.writes.copy(), world.api.reads["get", "DistSyncCluster"]
        began_s, cpu_s = time.monotonic(), process_cpu_s(operator.pid)
        rss_mib = 0.0
        while time.monotonic() - began_s < plan.idle_s:
            await asyncio.sleep(1.0)  # between samples: reading /proc takes CPU from the operator
            rss_mib = max(rss_mib, resident_mib(operator.pid))
        idle_s = time.monotonic() - began_s
        share = cpu_share(process_cpu_s(operator.pid) - cpu_s, idle_s)
        if operator.poll() is not None or world.api.refused:
            raise RuntimeError(f"the operator ended, or was refused: {world.api.refused[:3]}")
        written = Counter({f"{verb} {kind}": n for (verb, kind), n in world.api.writes.items()})
        written.subtract({f"{verb} {kind}": n for (verb, kind), n in writes.items()})
        renewals = written.pop("PUT Lease", 0)
        return Idle(
            resources=plan.resources,
            settled_s=settled_s,
            idle_s=idle_s,
            passes=world.api.reads["get", "DistSyncCluster"] - looked,
            cpu_share=share,
            rss_mib=rss_mib,
            writes={what: count for what, count in written.items() if count},
            lease_renewals=renewals,
        )


async def _settle(world: World, resources: int) -> None:
    """Wait until all are ready and nothing but the Lease has been written for a while."""

    def are_ready() -> bool:
        if world.operators[0].poll() is not None:
            raise RuntimeError("the operator ended")
        bodies = world.api.list("DistSyncCluster")
        return len(bodies) == resources and all(map(_is_ready, bodies))

    await world.eventually(are_ready, "all resources ready", SETTLE_S)
    before, quiet_s = world.api.writes.copy(), time.monotonic()
    while time.monotonic() - quiet_s < QUIET_S:
        await asyncio.sleep(0.5)  # between looks whether anything was written
        if {kind for _, kind in world.api.writes - before} - {"Lease"}:
            before, quiet_s = world.api.writes.copy(), time.monotonic()


def _is_ready(body: dict[str, Any]) -> bool:
    conditions = body.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def ratios(found: Idle, *, full: bool) -> list[Ratio]:
    """The figures beside their goals."""

    def line(what: str, value: float, goal: float) -> Ratio:
        return judge(what, value, goal=goal if full else None, bound="at_most")

    return [
        line(f"MiB resident, {found.resources} resources", found.rss_mib, RSS_GOAL_MIB),
        line("share of a core while nothing changes", found.cpu_share, CPU_GOAL_SHARE),
        line("writes but for the Lease", float(sum(found.writes.values())), 0.0),
        # Each was looked at again, or the figures say nothing.
        judge(
            "looks at each resource, on average",
            found.passes / found.resources,
            goal=1.0 if full else None,
            bound="at_least",
        ),
    ]


def main() -> None:
    """Run it and write operator-idle.json."""
    options = parse_options(__doc__)
    plan = QUICK if options.quick else Plan()
    judged: list[Ratio] = []

    def run(data_root: Path, say: Say) -> Measured:
        found = asyncio.run(measure(data_root, plan, say))
        judged.extend(ratios(found, full=not options.quick))
        return judged, [msgspec.to_builtins(found)]

    versions = {name: importlib.metadata.version(name) for name in ("kopf", "kubernetes")}
    run_benchmark("operator-idle", "bench.operator_idle", options, versions, run)
    sys.exit(any(ratio.met is False for ratio in judged))


if __name__ == "__main__":
    main()
