"""Planting bugs: the catalogue that `planted_*.py` fill and `mutants.py` runs.

A planted bug replaces functions of the real code for the rest of the process. Each is a mistake
that somebody could make and that breaks a promise; none only costs time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One planted bug; `profile` is where it shows soonest (None: the seed's own)."""

    name: str
    what: str
    plant: Callable[[], None]
    profile: str | None = None


Plant = Callable[[], None]


def catalogue() -> tuple[dict[str, Mutant], Callable[..., Callable[[Plant], None]]]:
    """Return an empty catalogue, and the decorator that registers a bug under its function's name.

    The decorator takes what the bug is and, if it shows soonest in one, the profile.
    """
    mutants: dict[str, Mutant] = {}

    def mutant(what: str, profile: str | None = None) -> Callable[[Plant], None]:
        def register(plant: Plant) -> None:
            name = plant.__name__
            mutants[name] = Mutant(name=name, what=what, plant=plant, profile=profile)

        return register

    return mutants, mutant


MUTANTS, mutant = catalogue()  # of Raft, the locks and the ring


def put(owner: Any, name: str, value: Any) -> None:
    """Replace a function for the rest of the process."""
    if not hasattr(owner, name):
        raise AttributeError(f"{owner} has no {name}: the planted bug has lost its place")
    setattr(owner, name, value)
