"""What the benchmarks have in common on the command line, and around a run."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.arithmetic import Ratio
from bench.machine import REPOSITORY, Machine, describe, pin_to_cores
from bench.report import RESULTS, Report, command_line, machine_lines, ratio_table, save

Say = Callable[[str], None]
Measured = tuple[list[Ratio], list[dict[str, Any]]]


class Options(argparse.Namespace):
    """The parsed options."""

    quick: bool
    data_dir: Path
    results: Path
    parts: list[str]


def parse_options(description: str | None, parts: Sequence[str] = ()) -> Options:
    """The common options of this command line; of `parts` all without a choice."""

    def chosen(text: str) -> list[str]:
        names = text.split(",")
        if not set(names) <= set(parts):
            raise ValueError(text)
        return names

    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter, for checking; NAME-quick.*")
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=REPOSITORY / ".distsync" / "bench",
        help="where the systems keep their data; removed at the end (%(default)s)",
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where the figures go (%(default)s)"
    )
    if parts:
        parser.add_argument(
            "--parts", type=chosen, default=list(parts), help=f"of {','.join(parts)} (all)"
        )
    return parser.parse_args(namespace=Options())


def run_benchmark(
    name: str,
    module: str,
    options: Options,
    versions: dict[str, str],
    run: Callable[[Path, Say], Measured],
) -> Path:
    """Look at the machine, run, print the figures beside their goals and write NAME.json."""
    cores = pin_to_cores()
    options.data_dir.mkdir(parents=True, exist_ok=True)
    data_root = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=options.data_dir))
    began_s = time.monotonic()
    try:
        machine = describe(data_root, cores, versions)
        print(machine_lines(machine), flush=True)
        ratios, points = run(data_root, lambda line: print(line, flush=True))
    finally:
        shutil.rmtree(data_root, ignore_errors=True)
    report = _report(ratios, points, machine, module, began_s, options)
    path = save(name, report, options.results)
    print(f"\n{ratio_table(ratios)}\n\n{path} ({report.took_s:.0f} s)", flush=True)
    return path


def _report(
    ratios: list[Ratio],
    points: list[dict[str, Any]],
    machine: Machine,
    module: str,
    began_s: float,
    options: Options,
) -> Report:
    return Report(
        ratios=ratios,
        points=points,
        machine=machine,
        command=command_line(module),
        took_s=round(time.monotonic() - began_s, 1),
        quick=options.quick,
    )
