"""Options that every subcommand takes, before or after its name: where the cluster is, and how
to print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import click

from distsync.command.output import OutputFormat
from distsync.nodes import DEFAULT_URLS

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(slots=True, kw_only=True)
class Options:
    """What the common options said; the one nearest to the end of the command line wins."""

    urls: tuple[str, ...] = field(default=DEFAULT_URLS)
    output: OutputFormat = "table"

    @property
    def json(self) -> bool:
        """Whether programs read the output."""
        return self.output == "json"


def parse_urls(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of http(s) URLs.

    Raises:
        ValueError: one of them is not such a URL.
    """
    urls = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    if not urls:
        raise ValueError("no URL given")
    for url in urls:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a URL such as http://127.0.0.1:8081")
    return urls


def _take_urls(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    try:
        ctx.ensure_object(Options).urls = parse_urls(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _take_output(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Options).output = cast(OutputFormat, value)


def output_option(*, envvar: str | None = None) -> Callable[[_Function], _Function]:
    """Return the decorator that adds `--output table|json`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        envvar=envvar,
        callback=_take_output,
        expose_value=False,
        help="How to print: table (default) or json.",
    )


def url_option(*, envvar: str | None = None) -> Callable[[_Function], _Function]:
    """Return the decorator that adds `--url`."""
    return click.option(
        "--url",
        metavar="URL[,URL...]",
        envvar=envvar,
        callback=_take_urls,
        expose_value=False,
        help="Client URLs of any nodes  [env: DISTSYNC_URL; default: ports 8081 to 8083 here].",
    )


def limit_option(of: str = "") -> Callable[[_Function], _Function]:
    """Return the decorator that adds `--limit` to a list; see `output.tell_more`."""
    return click.option(
        "--limit",
        type=click.IntRange(min=0),
        default=100,
        show_default=True,
        metavar="N",
        help=f"How many{of} at most; 0 for all.",
    )


def cluster_options(function: _Function) -> _Function:
    """Add `--url` and `--output` to a subcommand; the environment is read by the root only."""
    return url_option()(output_option()(function))
