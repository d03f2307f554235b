"""What the command prints: aligned tables for people, JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import click
import msgspec

OutputFormat: TypeAlias = Literal["table", "json"]


def render_table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out rows under their headings; numbers are aligned to the right, None is a dash."""
    texts = [[_cell(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(_is_number_or_none(row[i]) for row in rows) for i in range(len(headings))
    ]
    widths = [max(len(line[i]) for line in [list(headings), *texts]) for i in range(len(headings))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in [list(headings), *texts]
    ]
    return "\n".join(lines)


def render_json(value: object) -> str:
    """Encode on one line, so that a stream of values is a stream of lines."""
    return msgspec.json.encode(value).decode()


def emit(text: str) -> None:
    """Print a line at once, also into a pipe."""
    click.echo(text)


def tell_more() -> None:
    """Tell a person that a list was cut at its `--limit`."""
    click.echo("distsync: there are more; --limit 0 lists all", err=True)


def printable(text: str) -> str:
    """Replace control characters: a name may hold anything, and must not draw on a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def body_for(body: str, *, terminal: bool) -> str:
    """Return a body as it is, but for what would draw on a terminal."""
    if not terminal:
        return body
    return "".join(c if c in "\n\t" else printable(c) for c in body)


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case _:
            return printable(str(value))
