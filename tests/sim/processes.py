"""The commands of the simulators, for tests: each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def run(module: str, *options: str, hash_seed: str = "random") -> str:
    """Return what it prints."""
    finished = subprocess.run(
        [sys.executable, "-m", module, "--lines=0", *options],
        cwd=TESTS,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def check_trace(module: str, *options: str) -> None:
    """The same seed gives the same trace whatever the hash seed."""
    traces = set()
    for hash_seed in ("1", "2"):
        printed = run(module, *options, hash_seed=hash_seed)
        traces.add(next(line for line in printed.splitlines() if "trace" in line))
    assert len(traces) == 1


def check_caught(module: str, name: str, first: int) -> None:
    """A planted bug is caught within ten seeds."""
    printed = run(module, "--only", name, f"--first={first}", "--seeds=10")
    assert f"{name}: caught by" in printed
