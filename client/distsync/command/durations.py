"""Durations as people write them: `10s`, `500ms`, `2m`, `1h30m`. Inside they are milliseconds."""

from __future__ import annotations

import re
from decimal import Decimal

import click

_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)


def parse_duration_ms(text: str) -> int:
    """Return the milliseconds of a duration such as `1m30s`; a bare `0` is zero.

    Raises:
        ValueError: no unit, an unknown one, or a fraction of a millisecond.
    """
    if text == "0":
        return 0
    position, total_ms = 0, Decimal(0)
    while part := _PART.match(text, position):
        total_ms += Decimal(part[1]) * _UNITS_MS[part[2]]
        position = part.end()
    if not text or position != len(text):
        hint = f"; write {text}s or {text}ms" if text.isdecimal() else ""
        raise ValueError(f"{text!r} is not a duration such as 10s, 500ms, 2m or 1h{hint}")
    if total_ms != int(total_ms):
        raise ValueError(f"{text!r} is not a whole number of milliseconds")
    return int(total_ms)


def format_duration(duration_ms: int) -> str:
    """Write milliseconds with the units a person would choose; exact below a minute."""
    if duration_ms < 0:
        return f"-{format_duration(-duration_ms)}"
    if duration_ms < 1_000:
        return f"{duration_ms}ms"
    if duration_ms < 60_000:
        return f"{Decimal(duration_ms) / 1_000:f}s"
    minutes, seconds = divmod(duration_ms // 1_000, 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "m"), (seconds, "s")]
    return "".join(f"{amount}{unit}" for amount, unit in parts if amount)


class DurationType(click.ParamType[int]):
    """A command line option that is a duration within bounds; its value is milliseconds."""

    name = "duration"

    def __init__(self, *, least_ms: int = 0, most_ms: int | None = None) -> None:
        self.least_ms = least_ms
        self.most_ms = most_ms

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Turn the text of an option into milliseconds."""
        if isinstance(value, int):
            return value
        try:
            duration_ms = parse_duration_ms(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if duration_ms < self.least_ms:
            self.fail(f"{value} is below {format_duration(self.least_ms)}", param, ctx)
        if self.most_ms is not None and duration_ms > self.most_ms:
            self.fail(f"{value} is above {format_duration(self.most_ms)}", param, ctx)
        return duration_ms
