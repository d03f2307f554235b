"""The lock services beside each other in one run: `make bench-locks`.

    cd tests && python -m bench.locks [--quick] [--parts throughput,failover,resources]

Writes results/locks.json and locks.png (throughput and failover), and results/resources.json.
docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from bench import failover, plot, resources, throughput
from bench.arithmetic import Ratio
from bench.options import Measured, Say, parse_options, run_benchmark
from bench.report import table
from bench.systems import lock_versions

PARTS = ("throughput", "failover", "resources")
QUICK_PLAN = throughput.Plan(rounds=1, duration_s=1.0, warmup_s=0.4)
REPETITIONS = 10
QUICK_REPETITIONS = 3


def main() -> None:
    """Run the parts asked for."""
    options = parse_options(__doc__, PARTS)
    points: list[throughput.Point] = []
    failovers: list[failover.Failover] = []

    def run(data_root: Path, say: Say) -> Measured:
        if "throughput" in options.parts:
            plan = QUICK_PLAN if options.quick else throughput.Plan()
            points.extend(throughput.measure(data_root, plan, say))
        if "failover" in options.parts:
            repetitions = QUICK_REPETITIONS if options.quick else REPETITIONS
            failovers.extend(failover.measure(data_root, repetitions, say))
        say("\n" + _tables(points, failovers))
        shown = [msgspec.to_builtins(point) for point in points]
        return _ratios(points, failovers), shown + failover.points(failovers)

    if {"throughput", "failover"} & set(options.parts):
        path = run_benchmark("locks", "bench.locks", options, lock_versions(), run)
        title = "Locks: three nodes each on loopback, fsync on, the same two cores"
        plot.plot_locks(points, failovers, title, path.with_suffix(".png"))
    if "resources" in options.parts:
        plan = resources.QUICK if options.quick else resources.Plan()

        def run_resources(data_root: Path, say: Say) -> Measured:
            found = resources.measure(data_root, plan, say)
            return resources.ratios(found, full=not options.quick), resources.points(found)

        run_benchmark("resources", "bench.locks", options, lock_versions(), run_resources)


def _ratios(points: list[throughput.Point], failovers: list[failover.Failover]) -> list[Ratio]:
    return [*(throughput.ratios(points) if points else []), *failover.ratios(failovers)]


def _tables(points: list[throughput.Point], failovers: list[failover.Failover]) -> str:
    header = (
        *("scenario", "clients", "system", "pairs/s", "p50 ms", "p99 ms"),
        *("CPU µs/pair", "load CPU %", "errors", "not counted"),
    )
    rows = [
        (
            point.scenario,
            point.clients,
            point.variant,
            point.pairs_per_s,
            point.p50_ms,
            point.p99_ms,
            point.cpu_us_per_pair,
            point.load_cpu_share * 100,
            point.errors,
            point.rounds_not_counted,
        )
        for point in sorted(points, key=lambda point: (point.scenario, point.clients))
    ]
    text = table(header, rows) if rows else ""
    if failovers:
        lines = [
            (found.variant, found.timing, found.median_s, found.longest_s, len(found.times_s))
            for found in failovers
        ]
        names = ("kill -9 of the leader", "timing", "median s", "longest s", "kills")
        text += "\n\n" + table(names, lines)
    return text


if __name__ == "__main__":
    main()
