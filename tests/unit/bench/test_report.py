"""Tables and files."""

from __future__ import annotations

import json
from pathlib import Path

from bench.arithmetic import judge
from bench.machine import Machine
from bench.report import Report, machine_lines, ratio_table, save, table

MACHINE = Machine(
    cpu="a CPU",
    cores=[0, 1],
    memory_gib=4.0,
    kernel="6.1",
    python="3.11.7",
    filesystem="ext4",
    fdatasync_ms=0.2,
    load_average=(1.5, 0.5, 0.1),
    busy_share=0.4,
    quiet=False,
    versions={"etcd": "3.5.1"},
    revision="abc",
    began="2025-01-01T00:00:00Z",
)


def report(*, quick: bool) -> Report:
    ratios = [judge("pairs", 1.9, goal=2, bound="at_least")]
    return Report(
        ratios=ratios, points=[{"a": 1}], machine=MACHINE, command="x", took_s=1.0, quick=quick
    )


def test_the_file_holds_name_ratio_and_goal(tmp_path: Path) -> None:
    written = json.loads(save("locks", report(quick=False), tmp_path).read_text())
    (ratio,) = written["ratios"]
    assert (ratio["name"], ratio["ratio"], ratio["goal"], ratio["met"]) == ("pairs", 1.9, 2, False)
    assert written["machine"]["cpu"] == "a CPU"


def test_a_quick_run_replaces_no_true_figures(tmp_path: Path) -> None:
    true, quick = (save("locks", report(quick=quick), tmp_path) for quick in (False, True))
    assert true != quick


def test_a_missed_goal_and_a_missing_figure_are_told_apart() -> None:
    missed = ratio_table([judge("x", 1.9, goal=2, bound="at_least")])
    missing = ratio_table([judge("x", None, goal=2, bound="at_least")])
    assert "MISSED" in missed
    assert "MISSED" not in missing
    assert "no valid figure" in missing


def test_a_busy_machine_is_called_busy() -> None:
    assert "BUSY" in machine_lines(MACHINE)


def test_numbers_stand_to_the_right_under_their_heading() -> None:
    assert table(("name", "figure"), [("a", 1.0), ("bb", None)]).splitlines() == [
        "name  figure",
        "a          1",
        "bb         -",
    ]
