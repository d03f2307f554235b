"""Pairs of acquire and release in a closed loop, the systems taking turns.

A round starts each cluster afresh, alone on the machine, runs all its points and ends it; the
order of the systems rotates from round to round, and a point's figures are the medians of its
rounds. A round in which the load client used over 80 % of its core, or more than 1 % of the pairs
failed, does not count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import msgspec

from bench.arithmetic import Ratio, hold_against, is_counted, middle
from bench.driver import run_load, unique_run_id
from bench.load import LoadResult, LoadSpec
from bench.options import Say
from bench.rounds import Plan, figure, in_turn, judge_load
from bench.systems import Cluster, DistSync, Etcd, PySyncObj, running

CLIENTS = (1, 16, 64)
MOST_CLIENTS = 64
SHARED_NAMES = 8
PAIRS_GOAL = 2.0
P50_GOAL = 0.7

Scenario = Literal["leader", "spread", "contended"]


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A system, a scenario and a number of clients, over all rounds."""

    variant: str
    scenario: Scenario
    clients: int
    pairs_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    cpu_us_per_pair: float | None
    load_cpu_share: float
    errors: int
    rounds_not_counted: int
    rounds: list[LoadResult]


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """A cluster and the ways it is asked, each with the scenarios it takes part in."""

    make: Callable[[Path], Cluster]
    variants: dict[str, tuple[Scenario, ...]]
    dialects: dict[str, str] = {}


BENCHES = (
    Bench(
        make=DistSync,
        variants={
            "distsync": ("leader", "spread", "contended"),
            "distsync-request-ids": ("leader",),
        },
    ),
    Bench(
        make=Etcd,
        # A transaction cannot wait for a lock, so it has no contended scenario.
        variants={
            "etcd-lock": ("leader", "spread", "contended"),
            "etcd-txn": ("leader", "spread"),
        },
    ),
    Bench(make=PySyncObj, variants={"pysyncobj": ("leader", "spread", "contended")}),
    Bench(
        make=lambda directory: PySyncObj(directory, batch_ms=1),
        variants={"pysyncobj-batched": ("leader", "spread")},
        dialects={"pysyncobj-batched": "pysyncobj"},
    ),
)


def measure(
    data_root: Path, plan: Plan, say: Say, benches: tuple[Bench, ...] = BENCHES
) -> list[Point]:
    """All points of all systems."""
    rounds: defaultdict[tuple[str, Scenario, int], list[LoadResult]] = defaultdict(list)
    for number in range(plan.rounds):
        for bench in in_turn(benches, number):
            directory = data_root / f"round-{number}" / next(iter(bench.variants))
            with running(bench.make(directory)) as cluster:
                for key, result in _points_of(cluster, bench, plan):
                    rounds[key].append(result)
                    say(_progress(number, key, result))
    return [summarise(*key, results) for key, results in sorted(rounds.items())]


def summarise(variant: str, scenario: Scenario, clients: int, rounds: list[LoadResult]) -> Point:
    """Medians over the rounds that count."""
    counted = [result for result in rounds if counts(result)]
    return Point(
        variant=variant,
        scenario=scenario,
        clients=clients,
        pairs_per_s=middle(result.pairs_per_s for result in counted),
        p50_ms=middle(result.p50_ms for result in counted),
        p99_ms=middle(result.p99_ms for result in counted),
        cpu_us_per_pair=middle(result.cpu_us_per_pair for result in counted),
        load_cpu_share=max(result.load_cpu_share for result in rounds),
        errors=sum(sum(result.errors.values()) for result in rounds),
        rounds_not_counted=len(rounds) - len(counted),
        rounds=rounds,
    )


def counts(result: LoadResult) -> bool:
    """Whether a round says something of the servers."""
    failed = sum(result.errors.values())
    return is_counted(void=result.void, done=result.pairs, failed=failed)


def ratios(points: list[Point]) -> list[Ratio]:
    """DistSync beside the others; the goals are those of the product."""

    def beside(
        what: str, variant: str, scenario: str, others: tuple[str, ...], goal: float | None
    ) -> Ratio:
        known = [figure(points, "pairs_per_s", other, scenario, MOST_CLIENTS) for other in others]
        return hold_against(
            what,
            figure(points, "pairs_per_s", variant, scenario, MOST_CLIENTS),
            max(known) if all(known) else None,  # type: ignore[type-var]
            goal=goal,
            bound="at_least",
        )

    def quicker(what: str, others: tuple[str, ...], goal: float | None) -> Ratio:
        known = [figure(points, "p50_ms", other, "leader", 1) for other in others]
        return hold_against(
            what,
            figure(points, "p50_ms", "distsync", "leader", 1),
            min(known) if all(known) else None,  # type: ignore[type-var]
            goal=goal,
            bound="at_most",
        )

    etcd = ("etcd-lock", "etcd-txn")
    pysyncobj = ("pysyncobj", "pysyncobj-batched")
    many = f"pairs/s, {MOST_CLIENTS} clients"
    return [
        beside(f"{many}: over etcd's lock service", "distsync", "leader", etcd[:1], PAIRS_GOAL),
        beside(f"{many}: over the faster form of etcd", "distsync", "leader", etcd, PAIRS_GOAL),
        beside(f"{many}: over PySyncObj", "distsync", "leader", pysyncobj[:1], PAIRS_GOAL),
        beside(
            f"{many}: over PySyncObj in batches of 1 ms",
            "distsync",
            "leader",
            pysyncobj[1:],
            PAIRS_GOAL,
        ),
        quicker("p50 of a pair, 1 client: over etcd's lock service", etcd[:1], P50_GOAL),
        quicker("p50 of a pair, 1 client: over the faster form of etcd", etcd, P50_GOAL),
        quicker("p50 of a pair, 1 client: over the faster PySyncObj", pysyncobj, None),
        beside(
            f"{many}, with request ids: over the faster form of etcd",
            "distsync-request-ids",
            "leader",
            etcd,
            None,
        ),
        beside(f"{many}, spread: over the faster form of etcd", "distsync", "spread", etcd, None),
        beside(
            f"{many}, contended: over etcd's lock service", "distsync", "contended", etcd[:1], None
        ),
        judge_load(point.load_cpu_share for point in points),
    ]


def _points_of(
    cluster: Cluster, bench: Bench, plan: Plan
) -> Iterable[tuple[tuple[str, Scenario, int], LoadResult]]:
    for variant, scenarios in bench.variants.items():
        for scenario in scenarios:
            for clients in CLIENTS if scenario == "leader" else (MOST_CLIENTS,):
                targets = cluster.targets()
                if scenario != "spread":
                    targets = [targets[cluster.leader()]]
                spec = LoadSpec(
                    dialect=bench.dialects.get(variant, variant),
                    targets=targets,
                    clients=clients,
                    run_id=unique_run_id(f"{variant}-{scenario}-{clients}"),
                    duration_s=plan.duration_s,
                    warmup_s=plan.warmup_s,
                    shared_names=SHARED_NAMES if scenario == "contended" else 0,
                    server_pids=cluster.pids(),
                )
                yield (variant, scenario, clients), run_load(spec)


def _progress(number: int, key: tuple[str, Scenario, int], result: LoadResult) -> str:
    variant, scenario, clients = key
    line = (
        f"round {number + 1}  {variant:<21} {scenario:<9} {clients:>3} clients"
        f"  {result.pairs_per_s:>8.0f} pairs/s"
    )
    if result.p50_ms is not None and result.p99_ms is not None:
        line += f"  p50 {result.p50_ms:7.2f} ms  p99 {result.p99_ms:7.2f} ms"
    if result.void:
        line += "  VOID: the load client was the limit"
    if result.errors:
        line += f"  errors {result.errors}"
    return line
