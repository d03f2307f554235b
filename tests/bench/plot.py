"""The picture beside the figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from bench.cache_throughput import CLIENTS as CACHE_CLIENTS
from bench.cache_throughput import SCENARIOS as CACHE_SCENARIOS
from bench.cache_throughput import CachePoint
from bench.failover import GOAL_S, Failover
from bench.queue_throughput import QueuePoint
from bench.throughput import CLIENTS, Point

COLOURS = {
    "distsync": "#1b6ca8",
    "distsync-request-ids": "#7fb2d6",
    "etcd": "#c8553d",
    "etcd-500": "#e7a48f",
    "etcd-lock": "#c8553d",
    "etcd-txn": "#e7a48f",
    "pysyncobj": "#588157",
    "pysyncobj-batched": "#a3b899",
    "arq": "#e7a48f",
    "bare scripts": "#8d8d8d",
    "fastapi": "#588157",
    "fastapi-tracking": "#a3b899",
    "local": "#7fb2d6",
    "mirrored": "#1b6ca8",
    "redis-py": "#8d8d8d",
    "write_through": "#c9a227",
    "bullmq": "#c8553d",
    "dramatiq": "#588157",
    "saq": "#c9a227",
    "taskiq": "#a3b899",
}
AnyPoint = Point | QueuePoint | CachePoint
Figure = Callable[[Any], float | None]


def plot_locks(points: list[Point], failovers: list[Failover], title: str, path: Path) -> None:
    """Pairs/s, p50, CPU per pair, and the time without grants after a kill."""
    figure, ((pairs, latency), (cpu, failover)) = plt.subplots(2, 2, figsize=(12, 8))
    shown = [point for point in points if point.scenario == "leader"]
    _bars(pairs, shown, "pairs/s", lambda point: point.pairs_per_s)
    _lines(latency, shown, "p50 of a pair, ms", lambda point: point.p50_ms)
    _lines(cpu, shown, "CPU of all servers, µs a pair", lambda point: point.cpu_us_per_pair)
    _dots(failover, failovers)
    _save(figure, pairs, title, path)


def plot_queues(points: list[QueuePoint], title: str, path: Path) -> None:
    """Messages/s one at a time and at most, latency, and CPU per message."""
    figure, ((singles, most), (latency, cpu)) = plt.subplots(2, 2, figsize=(12, 8))
    shown = [point for point in points if point.scenario == "singles" and point.p99_ms is not None]
    _bars(singles, shown, "messages/s, one a request", lambda point: point.messages_per_s)
    _lines(latency, shown, "p99 from push to handled, ms", lambda point: point.p99_ms)
    _ranks(most, [point for point in points if point.scenario in ("batches", "backlog")])
    _stacks(cpu, [point for point in shown if point.clients == max(CLIENTS)])
    _save(figure, singles, title, path)


def plot_cache(points: list[CachePoint], title: str, path: Path) -> None:
    """Hits/s, 90/10, latency of a hit, and what writes cost in each durability."""
    figure, ((hits, mixed), (latency, writes)) = plt.subplots(2, 2, figsize=(12, 8))
    of = {name: [one for one in points if one.scenario == name] for name in CACHE_SCENARIOS}
    _bars(hits, of["hits"], "hits/s", lambda point: point.operations_per_s, CACHE_CLIENTS)
    label = "operations/s, 90 % GET and 10 % SET"
    _bars(mixed, of["mixed"], label, lambda point: point.operations_per_s, CACHE_CLIENTS)
    _lines(latency, of["hits"], "p50 of a hit, ms", lambda point: point.p50_ms, CACHE_CLIENTS)
    label = "rewrites of a dirty line/s"
    _bars(writes, of["rewrite"], label, lambda point: point.operations_per_s, CACHE_CLIENTS)
    writes.legend(frameon=False)
    _save(figure, hits, title, path)


def _save(figure: Any, legend_of: Axes, title: str, path: Path) -> None:
    handles, labels = legend_of.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, ncols=len(labels), loc="lower center", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _bars(
    axes: Axes,
    points: Sequence[AnyPoint],
    label: str,
    figure_of: Figure,
    of_clients: Sequence[int] = CLIENTS,
) -> None:
    shown = _by_variant(points, figure_of)
    width = 0.8 / max(len(shown), 1)
    for number, (variant, by_clients) in enumerate(shown.items()):
        places = [place + number * width for place in range(len(of_clients))]
        heights = [by_clients.get(clients) or 0 for clients in of_clients]
        axes.bar(places, heights, width, label=variant, color=COLOURS[variant])
    axes.set_ylabel(label)
    _finish(axes, of_clients, middle=0.4 - width / 2)


def _lines(
    axes: Axes,
    points: Sequence[AnyPoint],
    label: str,
    figure_of: Figure,
    of_clients: Sequence[int] = CLIENTS,
) -> None:
    for variant, by_clients in _by_variant(points, figure_of).items():
        heights = [by_clients.get(clients) for clients in of_clients]
        axes.plot(range(len(of_clients)), heights, marker="o", color=COLOURS[variant])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set_ylabel(label)
    _finish(axes, of_clients, middle=0)


def _ranks(axes: Axes, points: list[QueuePoint]) -> None:
    ranked = sorted(points, key=lambda point: point.messages_per_s or 0)
    labels = [f"{point.variant}, {point.scenario}" for point in ranked]
    heights = [point.messages_per_s or 0 for point in ranked]
    axes.barh(labels, heights, color=[COLOURS[point.variant] for point in ranked])
    axes.set_xscale("log")
    axes.set_xlabel("messages/s at most")
    axes.spines[["top", "right"]].set_visible(False)


def _stacks(axes: Axes, points: list[QueuePoint]) -> None:
    places = range(len(points))
    below = [0.0] * len(points)
    for label, shade, figures in (
        ("nodes", "#1b6ca8", [point.nodes_cpu_us or 0 for point in points]),
        ("Redis", "#c8553d", [point.redis_cpu_us or 0 for point in points]),
        ("load or worker and producer", "#bbbbbb", [point.load_cpu_us or 0 for point in points]),
    ):
        axes.bar(places, figures, 0.6, bottom=below, color=shade, label=label)
        below = [a + b for a, b in zip(below, figures, strict=True)]
    axes.set_xticks(places)
    axes.set_xticklabels([point.variant for point in points])
    axes.set_ylabel(f"CPU, µs a message, {max(CLIENTS)} clients")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _by_variant(points: Sequence[AnyPoint], figure_of: Figure) -> dict[str, dict[int, Any]]:
    shown: dict[str, dict[int, Any]] = {}
    for point in sorted(points, key=lambda point: point.variant):
        shown.setdefault(point.variant, {})[point.clients] = figure_of(point)
    return shown


def _finish(axes: Axes, of_clients: Sequence[int], *, middle: float) -> None:
    axes.set_xticks([place + middle for place in range(len(of_clients))])
    axes.set_xticklabels([f"{clients} client{'s' * (clients > 1)}" for clients in of_clients])
    axes.spines[["top", "right"]].set_visible(False)


def _dots(axes: Axes, failovers: list[Failover]) -> None:
    for place, failover in enumerate(failovers):
        times_s = [time_s for time_s in failover.times_s if time_s is not None]
        axes.scatter([place] * len(times_s), times_s, color=COLOURS[failover.variant], alpha=0.7)
        if failover.median_s is not None:
            axes.hlines(failover.median_s, place - 0.2, place + 0.2, color="black")
    axes.axhline(GOAL_S, color="grey", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(failovers)))
    labels = [f"{failover.variant}\n{failover.timing}" for failover in failovers]
    axes.set_xticklabels(labels, fontsize=7)
    axes.set_xlim(-0.5, max(len(failovers), 1) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("seconds without grants after kill -9")
    axes.spines[["top", "right"]].set_visible(False)
