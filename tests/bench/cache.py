"""The cache beside others in one run: `make bench-cache`.

    cd tests && python -m bench.cache [--quick] [--parts throughput,durability,failover,memory]

Writes results/cache.json and cache.png. docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bench import cache_faults, cache_throughput, plot
from bench.cache_faults import CacheFailover, Memory
from bench.cache_throughput import CachePoint
from bench.machine import version_of
from bench.options import Measured, Options, Say, parse_options, run_benchmark
from bench.report import table
from bench.systems import etcd_version
from redis_server import find_servers

PARTS = ("throughput", "durability", "failover", "memory")
QUICK_PACE = cache_throughput.Plan(rounds=1, duration_s=1.0, warmup_s=0.4)
QUICK_FAULTS = cache_faults.Plan(kills=2, max_bytes=8 * cache_faults.MIB)


def main() -> None:
    """Run the parts asked for."""
    options = parse_options(__doc__, PARTS)
    points: list[CachePoint] = []

    def run(data_root: Path, say: Say) -> Measured:
        return _measure(data_root, options, points, say)

    path = run_benchmark("cache", "bench.cache", options, _versions(), run)
    if points:
        title = "Cache: values of 200 bytes, one server asked, the same two cores"
        plot.plot_cache(points, title, path.with_suffix(".png"))


def _measure(data_root: Path, options: Options, points: list[CachePoint], say: Say) -> Measured:
    pace = QUICK_PACE if options.quick else cache_throughput.Plan()
    faults = QUICK_FAULTS if options.quick else cache_faults.Plan()
    failed: list[CacheFailover] = []
    held: Memory | None = None
    if "throughput" in options.parts:
        points += cache_throughput.measure(data_root, pace, say)
    if "durability" in options.parts:
        points += cache_throughput.measure_durabilities(data_root, pace, say)
    if "failover" in options.parts:
        failed = cache_faults.failovers(data_root, faults.kills, say)
    if "memory" in options.parts:
        held = cache_faults.memory(data_root, faults.max_bytes, say)
    if points:
        say("\n" + _table(points))
    ratios = cache_throughput.ratios(points) if points else []
    ratios += cache_faults.ratios(failed, held, full=not options.quick)
    measured = (*points, *failed, held)
    shown: list[dict[str, Any]] = [msgspec.to_builtins(one) for one in measured if one is not None]
    return ratios, shown


def _versions() -> dict[str, str]:
    return {
        "distsync": version_of("distsync"),
        "redis": next(iter(find_servers()), "missing"),
        "etcd": etcd_version(),
        "redis-py": version_of("redis"),
        **{name: version_of(name) for name in ("cashews", "fastapi", "uvicorn")},
    }


def _table(points: list[CachePoint]) -> str:
    header = (
        *("scenario", "clients", "system", "operations/s", "p50 ms", "p99 ms"),
        *("CPU of servers µs", "load CPU %", "errors", "not counted"),
    )
    rows = [
        (
            *(point.scenario, point.clients, point.variant, point.operations_per_s),
            *(point.p50_ms, point.p99_ms, point.server_cpu_us, point.load_cpu_share * 100),
            *(point.errors, point.rounds_not_counted),
        )
        for point in sorted(points, key=lambda point: (point.scenario, point.clients))
    ]
    return table(header, rows)


if __name__ == "__main__":
    main()
