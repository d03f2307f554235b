"""What a benchmark leaves behind: JSON, a text table, a plot."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.arithmetic import Ratio
from bench.machine import Machine

RESULTS = Path(__file__).parent / "results"
QUICK_SUFFIX = "-quick"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The file of one benchmark."""

    ratios: list[Ratio]
    points: list[dict[str, Any]]
    machine: Machine
    command: str
    took_s: float
    quick: bool


def command_line(module: str) -> str:
    """The command that gives these figures again, from the directory `tests`."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def save(name: str, report: Report, directory: Path = RESULTS) -> Path:
    """Write NAME.json; NAME-quick.json for a quick run, so that it replaces no true one."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}{QUICK_SUFFIX if report.quick else ''}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    return path


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = []
    for number, row in enumerate(cells):
        aligned = [
            cell.ljust(width) if number == 0 or not _is_number(cell) else cell.rjust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """Each figure beside its goal."""
    signs = {"at_least": ">=", "at_most": "<="}
    verdicts = {True: "met", False: "MISSED", None: ""}
    rows = [
        (
            ratio.name,
            "no valid figure" if ratio.ratio is None else f"{ratio.ratio:.3g}",
            f"{signs[ratio.bound]} {ratio.goal:g}" if ratio.goal is not None else "",
            verdicts[ratio.met],
        )
        for ratio in ratios
    ]
    return table(("figure", "measured", "goal", ""), rows)


def listed(figures: Sequence[float]) -> str:
    """Figures in one line."""
    return ", ".join(f"{figure:.1f}" for figure in figures)


def machine_lines(machine: Machine) -> str:
    """The machine in two lines, and a warning when it was busy with something else."""
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = (
        f"{machine.cpu}, {len(machine.cores)} cores, {machine.memory_gib} GiB, {machine.filesystem}"
        f" (fdatasync {machine.fdatasync_ms} ms), Linux {machine.kernel}, Python {machine.python}\n"
        f"{versions}; revision {machine.revision}; load average {machine.load_average[0]:.2f},"
        f" {machine.busy_share:.0%} busy before the run"
    )
    if not machine.quiet:
        lines += "\nTHE MACHINE WAS BUSY before the run: these figures are not worth quoting."
    return lines


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) and value < 1000 else _whole(value)


def _whole(value: object) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _is_number(cell: str) -> bool:
    return cell.replace(".", "", 1).replace("-", "", 1).replace(",", "").isdigit() or cell == "-"
