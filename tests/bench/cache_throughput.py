"""Reads and writes of values by each system in turn; the three durabilities beside each other.

A round starts a system and its Redis afresh, alone on the machine, runs all its points and ends
both; the order of the systems rotates from round to round, and a point's figures are the medians of
its rounds. The scenarios are those of `cache_load`. Every client asks one server; of DistSync that
is the first node, of etcd the leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import redis
import uvloop

from bench.arithmetic import Ratio, hold_against, is_counted, middle
from bench.cache_dialects import VALUE, make_cache_dialect
from bench.cache_load import REDIS_PY
from bench.driver import run_load, unique_run_id
from bench.load import LoadResult, LoadSpec
from bench.machine import REPOSITORY
from bench.options import Say
from bench.queue_delays import Connection
from bench.rounds import Plan, figure, in_turn, judge_load
from bench.systems import (
    HOST,
    DistSync,
    Etcd,
    SystemFailedError,
    ask_json,
    free_ports,
    running,
    start_process,
    stop_processes,
)
from redis_server import RedisServer, free_port

CLIENTS = (1, 64)
MOST_CLIENTS = 64
KEYS = 1_000
DURABILITIES = ("mirrored", "local", "write_through")
READ_SCENARIOS = ("hits", "mixed")
WRITE_SCENARIOS = ("rewrite", "first")
SCENARIOS = (*READ_SCENARIOS, *WRITE_SCENARIOS)
RATES = {
    "hits": "hits/s",
    "mixed": "90/10 GET/SET a second",
    "rewrite": "rewrites/s",
    "first": "first writes/s",
}
OURS, APP, TRACKING, ETCD = "distsync", "fastapi", "fastapi-tracking", "etcd"
HITS_OVER_APP_GOAL = 3.0
HITS_OVER_ETCD_GOAL = 1.5
HIT_P50_GOAL = 0.5
REWRITE_GOAL = 1.0
START_TIMEOUT_S = 30.0
PRELOAD_TRIES = 100

Key: TypeAlias = tuple[str, str, int]
Target: TypeAlias = tuple[str, int]


class CachePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A system, a scenario and a number of clients, over all rounds.

    `server_cpu_us` is of all servers for each operation, Redis included.
    """

    variant: str
    scenario: str
    clients: int
    operations_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    server_cpu_us: float | None
    load_cpu_share: float
    errors: int
    rounds_not_counted: int
    rounds: list[LoadResult]


def measure(data_root: Path, plan: Plan, say: Say) -> list[CachePoint]:
    """All points of all systems."""
    runs: list[Callable[[Path], Iterable[tuple[Key, LoadResult]]]] = [
        lambda directory: _ours(directory, plan),
        lambda directory: _app(directory, plan, APP),
        lambda directory: _app(directory, plan, TRACKING),
        lambda directory: _etcd(directory, plan),
        lambda directory: _redis_py(directory, plan),
    ]
    return _in_turns(data_root / "throughput", plan, runs, say)


def measure_durabilities(data_root: Path, plan: Plan, say: Say) -> list[CachePoint]:
    """Writes under each durability."""

    def run_of(mode: str) -> Callable[[Path], Iterable[tuple[Key, LoadResult]]]:
        options = ("--cache-durability", mode)
        return lambda directory: _ours(directory, plan, mode, WRITE_SCENARIOS, options)

    runs = [run_of(mode) for mode in DURABILITIES]
    return _in_turns(data_root / "durability", plan, runs, say)


def _in_turns(
    data_root: Path,
    plan: Plan,
    runs: list[Callable[[Path], Iterable[tuple[Key, LoadResult]]]],
    say: Say,
) -> list[CachePoint]:
    rounds: defaultdict[Key, list[LoadResult]] = defaultdict(list)
    for number in range(plan.rounds):
        for place, run in enumerate(in_turn(runs, number)):
            directory = data_root / f"round-{number}-{place}"
            directory.mkdir(parents=True)
            for key, result in run(directory):
                rounds[key].append(result)
                say(_progress(number, key, result))
    return [summarise(*key, results) for key, results in sorted(rounds.items())]


def summarise(variant: str, scenario: str, clients: int, rounds: list[LoadResult]) -> CachePoint:
    """Medians over the rounds that count."""
    counted = [
        one
        for one in rounds
        if is_counted(
            # With redis-py the client is what is measured: it cannot make the run void.
            void=one.void and variant != REDIS_PY,
            done=one.pairs,
            failed=sum(one.errors.values()),
        )
    ]
    return CachePoint(
        variant=variant,
        scenario=scenario,
        clients=clients,
        operations_per_s=middle(one.pairs_per_s for one in counted),
        p50_ms=middle(one.p50_ms for one in counted),
        p99_ms=middle(one.p99_ms for one in counted),
        server_cpu_us=middle(one.cpu_us_per_pair for one in counted),
        load_cpu_share=max(one.load_cpu_share for one in rounds),
        errors=sum(sum(one.errors.values()) for one in rounds),
        rounds_not_counted=len(rounds) - len(counted),
        rounds=rounds,
    )


def ratios(points: list[CachePoint]) -> list[Ratio]:
    """DistSync beside the others; the goals are those of the product."""

    def faster(
        scenario: str, clients: int, other: str, goal: float | None, ours: str = OURS
    ) -> Ratio:
        what = RATES[scenario]
        plural = "s" * (clients > 1)
        return hold_against(
            f"{what}, {clients} client{plural}: {ours} over {other}",
            figure(points, "operations_per_s", ours, scenario, clients),
            figure(points, "operations_per_s", other, scenario, clients),
            goal=goal,
            bound="at_least",
        )

    def quicker(scenario: str, other: str, goal: float | None, ours: str = OURS) -> Ratio:
        return hold_against(
            f"p50 of {scenario}, 1 client: {ours} over {other}",
            figure(points, "p50_ms", ours, scenario, 1),
            figure(points, "p50_ms", other, scenario, 1),
            goal=goal,
            bound="at_most",
        )

    lines: list[Ratio] = []
    if any(point.variant == OURS for point in points):
        lines += [
            faster("hits", MOST_CLIENTS, APP, HITS_OVER_APP_GOAL),
            faster("hits", MOST_CLIENTS, ETCD, HITS_OVER_ETCD_GOAL),
            quicker("hits", APP, HIT_P50_GOAL),
            quicker("hits", ETCD, None),
            faster("hits", MOST_CLIENTS, TRACKING, None),
            quicker("hits", TRACKING, None),
            faster("hits", MOST_CLIENTS, REDIS_PY, None),
            quicker("hits", REDIS_PY, None),
            *(
                faster("mixed", clients, other, None)
                for clients in reversed(CLIENTS)
                for other in (APP, TRACKING, ETCD, REDIS_PY)
            ),
        ]
    if any(point.variant in DURABILITIES for point in points):
        through, mirrored = "write_through", "mirrored"
        lines += [
            faster("rewrite", MOST_CLIENTS, through, REWRITE_GOAL, mirrored),
            quicker("rewrite", through, REWRITE_GOAL, mirrored),
            faster("first", MOST_CLIENTS, through, None, mirrored),
            quicker("first", through, None, mirrored),
            faster("rewrite", MOST_CLIENTS, mirrored, None, "local"),
        ]
    return [*lines, judge_load(one.load_cpu_share for one in points if one.variant != REDIS_PY)]


# --- The systems -------------------------------------------------------------------------------


def _ours(
    directory: Path,
    plan: Plan,
    variant: str = OURS,
    scenarios: Iterable[str] = READ_SCENARIOS,
    options: Sequence[str] = (),
) -> Iterator[tuple[Key, LoadResult]]:
    with (
        RedisServer(directory / "redis", port=free_port()) as server,
        running(DistSync(directory, redis_url=server.url, options=options)) as cluster,
    ):
        target = cluster.targets()[0]
        pids = [*cluster.pids(), server.pid]
        yield from _points(variant, "http", scenarios, target, pids, plan)


def _app(directory: Path, plan: Plan, variant: str) -> Iterator[tuple[Key, LoadResult]]:
    with (
        RedisServer(directory / "redis", port=free_port()) as server,
        running_app(directory, server.url, client_side=variant == TRACKING) as (target, process),
    ):
        pids = [process.pid, server.pid]
        yield from _points(variant, "http", READ_SCENARIOS, target, pids, plan)


def _etcd(directory: Path, plan: Plan) -> Iterator[tuple[Key, LoadResult]]:
    with running(Etcd(directory)) as cluster:
        target = cluster.targets()[cluster.leader()]
        yield from _points(ETCD, "etcd", READ_SCENARIOS, target, cluster.pids(), plan)


def _redis_py(directory: Path, plan: Plan) -> Iterator[tuple[Key, LoadResult]]:
    with RedisServer(directory / "redis", port=free_port()) as server:
        target = (HOST, server.port)
        yield from _points(REDIS_PY, REDIS_PY, READ_SCENARIOS, target, [server.pid], plan)


def _points(
    variant: str,
    kind: str,
    scenarios: Iterable[str],
    target: Target,
    pids: list[int],
    plan: Plan,
) -> Iterator[tuple[Key, LoadResult]]:
    for scenario in scenarios:
        for clients in CLIENTS:
            run_id = unique_run_id(f"{scenario}-{clients}")
            if scenario in READ_SCENARIOS:
                preload(kind, target, run_id)
            spec = LoadSpec(
                dialect=f"{kind}:{scenario}",
                targets=[target],
                clients=clients,
                run_id=run_id,
                duration_s=plan.duration_s,
                warmup_s=plan.warmup_s,
                shared_names=KEYS,
                server_pids=pids,
            )
            yield (variant, scenario, clients), run_load(spec, module="bench.cache_load")


def preload(kind: str, target: Target, run_id: str) -> None:
    """Set the keys of a run, and read each of them once, so that reads find what can be found."""
    names = [f"{run_id}.{number}" for number in range(KEYS)]
    if kind == REDIS_PY:
        with redis.Redis(host=target[0], port=target[1]) as client:
            client.mset(dict.fromkeys(names, VALUE))
    else:
        uvloop.run(_preload(kind, target, names))


async def _preload(kind: str, target: Target, names: list[str]) -> None:
    dialect = make_cache_dialect(kind)
    connection = await Connection.open(target)
    for name in names:
        for _ in range(PRELOAD_TRIES):
            written = dialect.was_written(await connection.ask(dialect.write(name)))
            if written and dialect.was_read(await connection.ask(dialect.read(name))):
                break
            await asyncio.sleep(0.1)  # a ring that still forms refuses for a moment
        else:
            raise SystemFailedError(f"{kind}: {name} could not be set")
    connection.close()


@contextlib.contextmanager
def running_app(
    directory: Path, redis_url: str, *, client_side: bool
) -> Iterator[tuple[Target, subprocess.Popen[bytes]]]:
    """The application under uvicorn with one worker, as DistSync's node is one process."""
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "tests"),
        "CACHE_URL": redis_url,
        "CACHE_CLIENT_SIDE": "1" if client_side else "0",
    }
    command = [
        *(sys.executable, "-m", "uvicorn", "bench.cache_app:app", "--host", HOST),
        *("--port", str(port), "--workers", "1", "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--log-level", "warning"),
    ]
    log = directory / "app.log"
    process = start_process(command, environment, log)
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while ask_json(port, "/openapi.json") is None:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise SystemFailedError(f"the application: {log.read_text()[-2000:]}")
            time.sleep(0.02)  # between questions whether it serves yet
        yield (HOST, port), process
    finally:
        stop_processes([process])


def _progress(number: int, key: Key, result: LoadResult) -> str:
    variant, scenario, clients = key
    line = (
        f"round {number + 1}  {variant:<16} {scenario:<8} {clients:>3} clients"
        f"  {result.pairs_per_s:>8.0f} operations/s"
    )
    if result.p50_ms is not None and result.p99_ms is not None:
        line += f"  p50 {result.p50_ms:7.3f} ms  p99 {result.p99_ms:7.3f} ms"
    if result.cpu_us_per_pair is not None:
        line += f"  CPU of servers {result.cpu_us_per_pair:.0f} µs"
    if result.void:
        line += "  the load client was the limit"
    if result.errors:
        line += f"  errors {result.errors}"
    return line
