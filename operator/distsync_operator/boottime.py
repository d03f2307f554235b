"""The clock that intervals are measured with."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def boottime_s() -> float:
    """Return seconds of `CLOCK_BOOTTIME`, which counts suspension too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def timestamp() -> str:
    """Return the wall-clock time as conditions show it to people; nothing is decided by it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def precise_timestamp() -> str:
    """Return the wall-clock time as Leases and Events show it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
