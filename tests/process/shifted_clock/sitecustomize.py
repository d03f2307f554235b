"""Gives the Python that finds this on its path a wall clock that is wrong by so many seconds.

Clocks that count elapsed time stay as they are, as on a machine whose date was set wrongly.
"""

from __future__ import annotations

import datetime
import os
import time
from typing import Any

SHIFT_SECONDS = int(os.environ["SHIFTED_CLOCK_SECONDS"])
SHIFT_NS = SHIFT_SECONDS * 1_000_000_000

_time, _time_ns = time.time, time.time_ns
_clock_gettime, _clock_gettime_ns = time.clock_gettime, time.clock_gettime_ns
_localtime, _gmtime = time.localtime, time.gmtime
_datetime, _date = datetime.datetime, datetime.date


def _shift_of(clock: int) -> int:
    return SHIFT_SECONDS if clock == time.CLOCK_REALTIME else 0


class _LikeDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class _LikeDate(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _date)


class ShiftedDatetime(_datetime, metaclass=_LikeDatetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Any:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def today(cls) -> Any:
        return cls.now()

    @classmethod
    def utcnow(cls) -> Any:
        return cls.now(datetime.UTC).replace(tzinfo=None)


class ShiftedDate(_date, metaclass=_LikeDate):
    @classmethod
    def today(cls) -> Any:
        return cls.fromtimestamp(time.time())


time.time = lambda: _time() + SHIFT_SECONDS
time.time_ns = lambda: _time_ns() + SHIFT_NS
time.clock_gettime = lambda clock: _clock_gettime(clock) + _shift_of(clock)
time.clock_gettime_ns = lambda clock: _clock_gettime_ns(clock) + _shift_of(clock) * 1_000_000_000
time.localtime = lambda seconds=None: _localtime(time.time() if seconds is None else seconds)
time.gmtime = lambda seconds=None: _gmtime(time.time() if seconds is None else seconds)
datetime.datetime, datetime.date = ShiftedDatetime, ShiftedDate  # type: ignore[misc]
