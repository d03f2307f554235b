"""How long one call is repeated, and what its end means."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum, auto
from typing import Any, Final

import msgspec

from distsync.connections import Answer, MaybeDone, refused
from distsync.errors import DistSyncError, OutcomeUnknown, Unavailable

__all__ = ["Call", "Patience", "Repeat"]

# A node tries for five seconds before it says that it could not; its own answer is worth waiting
# for, because it says whether anything was done. A dead node is noticed earlier (`lifelines`).
_ATTEMPT_SECONDS: Final = 7.0
_SHORTEST_ATTEMPT_SECONDS: Final = 0.05
_FIRST_PAUSE_SECONDS: Final = 0.02
_LONGEST_PAUSE_SECONDS: Final = 0.5
_DOUBT_SECONDS: Final = 100.0


class Repeat(Enum):
    """Whether, and why, a call may be repeated that may have been done."""

    KEYED = auto()  # it changes something; its request id or its nature has that done once
    IDEMPOTENT = auto()  # doing it twice is doing it once
    GUARDED = auto()  # what it names is gone once it was done: a repetition may be refused for that
    ONCE = auto()  # it is not repeated: done twice, it would undo what others did in between


class Call(msgspec.Struct):
    """One call; only `good_at`, when its node was last known to be good, changes."""

    method: str
    path: str
    body: bytes | None
    decode: Callable[[Answer], Any]
    repeat: Repeat
    wait_seconds: float = 0.0
    needs_leader: bool = True
    prefer: str | None = None
    keeps_to_one: bool = False  # any node answers alike, but the same one answers sooner
    headers: dict[str, str] | None = None
    good_at: float = float("-inf")


class Patience:
    """The patience of one call."""

    __slots__ = ("_doubt", "_give_up_at", "_latest", "_pause", "_started", "_timeout", "failures")

    def __init__(
        self, started: float, timeout: float, wait: float, give_up_at: float | None
    ) -> None:
        self.failures = 0
        self._started = started
        self._timeout = timeout
        self._give_up_at = started + timeout if give_up_at is None else give_up_at
        self._latest = started + wait + timeout if give_up_at is None else give_up_at
        self._pause = _FIRST_PAUSE_SECONDS
        self._doubt: Exception | None = None

    @property
    def in_doubt(self) -> bool:
        """Whether an attempt may have been done."""
        return self._doubt is not None

    def attempt_seconds(self, now: float) -> float:
        """Return how long the next attempt may take, waiting in the cluster not counted."""
        return max(_SHORTEST_ATTEMPT_SECONDS, min(_ATTEMPT_SECONDS, self._give_up_at - now))

    def resume_at(
        self, error: Exception, *, now: float, good_at: float, repeat: Repeat
    ) -> float | None:
        """Note the end of an attempt; return when to make the next, or None for not at all.

        `good_at` is when the node was last known to be good. The outage began after that, so the
        patience counts anew from there.
        """
        self.failures += 1
        self._give_up_at = max(self._give_up_at, min(good_at + self._timeout, self._latest))
        if isinstance(error, MaybeDone):
            if self._doubt is None or good_at > self._started:
                self._give_up_at = min(self._give_up_at, now + _DOUBT_SECONDS)
            self._doubt = error
            if repeat is Repeat.ONCE:
                return None
        pause = self._pause * (0.5 + random.random() / 2)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECONDS)
        return now + pause if now + pause < self._give_up_at else None

    def verdict(self, call: Call, last: Exception, now: float) -> DistSyncError:
        """Return the error with which the call ends after its `last` attempt."""
        said = refused(last)
        fields = dict(said.fields) if said is not None else {}
        tried = f"{call.path}: no answer in {now - self._started:.1f} s"
        if self._doubt is not None and call.repeat is not Repeat.IDEMPOTENT:
            return OutcomeUnknown(f"{tried}; it may have been done ({self._doubt})", **fields)
        kind = type(said) if isinstance(said, Unavailable) else Unavailable
        return kind(f"{tried} ({last})", **fields)
