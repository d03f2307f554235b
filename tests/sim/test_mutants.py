"""Planted bugs are caught: a few here at seeds known to show them, all by `make mutants`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sim.mutants import MUTANTS

TESTS = Path(__file__).parents[1]

# Seeds from a run of `make mutants`; a change of the simulator may move them.
QUICK = {
    "ack_before_fsync": 0,
    "vote_not_kept": 0,
    "half_is_a_quorum": 0,
    "uncommitted_applied": 0,
    "expiry_ignores_renewal": 7,
    "cancel_ignores_attempt": 0,
    "tokens_not_in_snapshot": 0,
    "takeover_without_waiting": 0,
}


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 15


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_planted_bug_is_caught(name: str) -> None:
    tried = subprocess.run(
        [
            *(sys.executable, "-m", "sim.mutants", "--only", name, "--lines=0"),
            *(f"--first={QUICK[name]}", "--seeds=10"),
        ],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert f"{name}: caught by" in tried.stdout
