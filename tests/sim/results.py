"""What a run of either simulator came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What went wrong."""

    check: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a run came to."""

    seed: int
    profile: str
    failure: Failure | None
    trace_hash: str
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of clients' calls, where counted
    virtual_s: float
    steps: int
    operations: int
    entries: int = 0  # of the replicated log, where there is one
    trace: tuple[str, ...] = ()
