"""The queues beside others in one run: `make bench-queues`.

    cd tests && python -m bench.queues [--quick] [--parts throughput,wakeups,failover,million]

Writes results/queues.json and queues.png. docs/benchmarks.md says what is measured and how.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec

from bench import failover, plot, queue_delays, queue_throughput
from bench.machine import version_of
from bench.options import Measured, Options, Say, parse_options, run_benchmark
from bench.peers import Peer, find_peers
from bench.queue_delays import Million, Wakeup
from bench.queue_throughput import QueuePoint
from bench.report import table
from redis_server import find_servers

PARTS = ("throughput", "wakeups", "failover", "million")
QUICK_PLAN = queue_throughput.Plan(rounds=1, duration_s=1.0, warmup_s=0.4)
QUICK_DELAYS = queue_delays.Plan(wakeups=24, kills=3, messages=100_000, calls=500)


def main() -> None:
    """Run the parts asked for."""
    options = parse_options(__doc__, PARTS)
    with tempfile.TemporaryDirectory(prefix="distsync-bench-") as scratch:
        wanted = "throughput" in options.parts
        peers = find_peers(Path(scratch), print) if wanted else []
        points: list[QueuePoint] = []

        def run(data_root: Path, say: Say) -> Measured:
            return _measure(data_root, options, peers, points, say)

        path = run_benchmark("queues", "bench.queues", options, _versions(peers), run)
    if points:
        title = "Queues: push, pop, ack of 200 bytes; one Redis, fsync always, the same two cores"
        plot.plot_queues(points, title, path.with_suffix(".png"))


def _measure(
    data_root: Path, options: Options, peers: list[Peer], points: list[QueuePoint], say: Say
) -> Measured:
    plan = QUICK_DELAYS if options.quick else queue_delays.Plan()
    woken: list[Wakeup] = []
    killed: failover.Failover | None = None
    million: Million | None = None
    if "throughput" in options.parts:
        pace = QUICK_PLAN if options.quick else queue_throughput.Plan()
        points.extend(queue_throughput.measure(data_root, pace, peers, say))
    if "wakeups" in options.parts:
        woken = queue_delays.wakeups(data_root, plan.wakeups, say)
    if "failover" in options.parts:
        killed = queue_delays.failover(data_root, plan.kills, say)
    if "million" in options.parts:
        million = queue_delays.million(data_root, plan.messages, plan.calls, say)
    if points:
        say("\n" + _table(points))
    ratios = queue_throughput.ratios(points) if points else []
    ratios += queue_delays.ratios(woken, killed, million, full=not options.quick)
    measured = (*points, *woken, killed, million)
    shown: list[dict[str, Any]] = [msgspec.to_builtins(one) for one in measured if one is not None]
    return ratios, shown


def _versions(peers: list[Peer]) -> dict[str, str]:
    return {
        "distsync": version_of("distsync"),
        "redis": next(iter(find_servers()), "missing"),
        **{peer.name: peer.version for peer in peers},
    }


def _table(points: list[QueuePoint]) -> str:
    header = (
        *("scenario", "clients", "system", "messages/s", "p50 ms", "p99 ms"),
        *("CPU µs: nodes", "Redis", "load", "errors", "not counted"),
    )
    rows = [
        (
            point.scenario,
            point.clients,
            point.variant,
            point.messages_per_s,
            point.p50_ms,
            point.p99_ms,
            point.nodes_cpu_us,
            point.redis_cpu_us,
            point.load_cpu_us,
            point.errors,
            point.rounds_not_counted,
        )
        for point in sorted(points, key=lambda point: (point.scenario, point.clients))
    ]
    return table(header, rows)


if __name__ == "__main__":
    main()
