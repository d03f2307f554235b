"""Planted bugs are caught: a few here at seeds known to show them, all by `make mutants`."""

from __future__ import annotations

import pytest

from sim.mutants import MUTANTS
from sim.processes import check_caught

# Seeds from a run of `make mutants`; a change of the simulator may move them.
QUICK = {
    "ack_before_fsync": 0,
    "vote_not_kept": 0,
    "half_is_a_quorum": 0,
    "uncommitted_applied": 0,
    "expiry_ignores_renewal": 30,
    "cancel_ignores_attempt": 0,
    "tokens_not_in_snapshot": 0,
    "takeover_without_waiting": 0,
}


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 15


@pytest.mark.parametrize("name", sorted(QUICK))
def test_a_planted_bug_is_caught(name: str) -> None:
    check_caught("sim.mutants", name, QUICK[name])
