"""Durations of the public surface: float seconds or `timedelta`; on the wire, milliseconds."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TypeAlias

__all__ = ["Duration", "milliseconds_or_none", "to_milliseconds", "to_seconds"]

Duration: TypeAlias = float | timedelta
"""Seconds as a number, or a `timedelta`."""


def to_seconds(value: Duration, name: str) -> float:
    """Return a duration in seconds.

    Raises:
        TypeError: it is neither a number nor a timedelta.
        ValueError: it is negative, infinite or not a number.
    """
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{name} must be seconds or a timedelta, not {type(value).__name__}")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} must be a finite duration of at least 0, not {value!r}")
    return float(seconds)


def to_milliseconds(seconds: float) -> int:
    """Return whole milliseconds; a duration above zero never becomes zero."""
    return math.ceil(round(seconds * 1000, 6))


def milliseconds_or_none(value: Duration | None, name: str) -> int | None:
    """Return a duration that may be left out in whole milliseconds; raises as `to_seconds`."""
    return None if value is None else to_milliseconds(to_seconds(value, name))
