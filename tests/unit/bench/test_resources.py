"""The figures of one system's resources beside their goals."""

from __future__ import annotations

from bench.arithmetic import Ratio
from bench.resources import Resources, ratios


def found(**changes: object) -> Resources:
    fields: dict[str, object] = {
        "locks": 100_000,
        "commands": 1_000_000,
        "idle_s": 30.0,
        "idle_cpu_share": 0.04,
        "idle_holding_cpu_share": 0.06,
        "empty_rss_mib": [60.0, 60.0, 60.0],
        "holding_rss_mib": [150.0, 301.0, 150.0],
        "after_commands_rss_mib": [200.0, 200.0, 200.0],
        "largest_data_mib": [20.0, 30.0, 199.0],
        "final_data_mib": [20.0, 20.0, 20.0],
        "snapshots": ["snapshot-1", "snapshot-2", "snapshot-2"],
        "restart_s": [1.0, 2.0, 4.0],
        "commands_per_s": 5000.0,
        **changes,
    }
    return Resources(**fields)  # type: ignore[arg-type]


def named(lines: list[Ratio], text: str) -> Ratio:
    (line,) = [line for line in lines if text in line.name]
    return line


def test_the_worst_node_is_held_against_the_goal() -> None:
    lines = ratios(found(), full=True)
    memory = named(lines, "locks held")
    assert (memory.ratio, memory.goal, memory.met) == (301.0, 300.0, False)
    disk = named(lines, "data directory")
    assert (disk.ratio, disk.goal, disk.met) == (199.0, 200.0, True)
    restart = named(lines, "from a snapshot")
    assert (restart.ratio, restart.goal, restart.met) == (4.0, 5.0, True)
    idle = named(lines, "three idle nodes")
    assert (idle.ratio, idle.goal, idle.met) == (0.04, 0.05, True)


def test_a_restart_without_a_snapshot_is_no_figure() -> None:
    lines = ratios(found(snapshots=["snapshot-1", None, "snapshot-2"]), full=True)
    assert named(lines, "from a snapshot").ratio is None


def test_a_quick_run_is_held_against_nothing_that_grows_with_its_size() -> None:
    goals = {line.name: line.goal for line in ratios(found(), full=False)}
    assert {name for name, goal in goals.items() if goal is not None} == {
        "share of a core for three idle nodes"
    }
