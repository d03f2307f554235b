"""The picture beside the figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter

from bench.failover import GOAL_S, Failover
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
}


def plot_locks(points: list[Point], failovers: list[Failover], title: str, path: Path) -> None:
    """Pairs/s, p50, CPU per pair, and the time without grants after a kill."""
    figure, ((pairs, latency), (cpu, failover)) = plt.subplots(2, 2, figsize=(12, 8))
    _bars(pairs, points)
    _lines(latency, points, "p50 of a pair, ms", lambda point: point.p50_ms)
    _lines(cpu, points, "CPU of all servers, µs a pair", lambda point: point.cpu_us_per_pair)
    _dots(failover, failovers)
    handles, labels = pairs.get_legend_handles_labels()
    figure.legend(handles, labels, ncols=len(labels), loc="lower center", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _bars(axes: Axes, points: list[Point]) -> None:
    shown = _by_variant(points, lambda point: point.pairs_per_s)
    width = 0.8 / max(len(shown), 1)
    for number, (variant, by_clients) in enumerate(shown.items()):
        places = [place + number * width for place in range(len(CLIENTS))]
        heights = [by_clients.get(clients) or 0 for clients in CLIENTS]
        axes.bar(places, heights, width, label=variant, color=COLOURS[variant])
    axes.set_ylabel("pairs/s")
    _finish(axes, middle=0.4 - width / 2)


def _lines(
    axes: Axes, points: list[Point], label: str, figure_of: Callable[[Point], float | None]
) -> None:
    for variant, by_clients in _by_variant(points, figure_of).items():
        heights = [by_clients.get(clients) for clients in CLIENTS]
        axes.plot(range(len(CLIENTS)), heights, marker="o", color=COLOURS[variant])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
    axes.set_ylabel(label)
    _finish(axes, middle=0)


def _by_variant(
    points: list[Point], figure_of: Callable[[Point], float | None]
) -> dict[str, dict[int, Any]]:
    shown: dict[str, dict[int, Any]] = {}
    for point in sorted(points, key=lambda point: point.variant):
        if point.scenario == "leader":
            shown.setdefault(point.variant, {})[point.clients] = figure_of(point)
    return shown


def _finish(axes: Axes, *, middle: float) -> None:
    axes.set_xticks([place + middle for place in range(len(CLIENTS))])
    axes.set_xticklabels([f"{clients} client{'s' * (clients > 1)}" for clients in CLIENTS])
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
