"""What a command stores or sends: from its arguments, from a file or from standard input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from io import BufferedIOBase, BytesIO
from typing import Any, TypeVar, cast

import click

__all__ = ["body_options", "choose_source"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def body_options(what: str) -> Callable[[_Function], _Function]:
    """Add `--stdin` and `--file` to a command whose argument is called `what`."""
    stdin = click.option(
        "--stdin", "from_stdin", is_flag=True, help=f"Read it; as without {what}, or -."
    )
    file = click.option("--file", type=click.File("rb"), metavar="FILE", help="Read it from there.")

    def add(function: _Function) -> _Function:
        return stdin(file(function))

    return add


def choose_source(
    what: str, argument: str | None, *, from_stdin: bool, file: BufferedIOBase | None
) -> BufferedIOBase:
    """Return where the body is to be read from.

    Raises:
        click.UsageError: more than one place was named.
    """
    if argument == "-":
        argument, from_stdin = None, True
    if (argument is not None) + from_stdin + (file is not None) > 1:
        raise click.UsageError(f"{what}, --stdin and --file exclude each other")
    if argument is not None:
        # What the shell passed that is not UTF-8, Python keeps as surrogates.
        return BytesIO(argument.encode(errors="surrogateescape"))
    if file is not None:
        return file
    if sys.stdin.isatty():
        click.echo("distsync: reading from the terminal, Ctrl-D ends it", err=True)
    return cast(BufferedIOBase, sys.stdin.buffer)
