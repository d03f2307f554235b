"""`distsync cache stats, lines`: what each node holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar
from urllib.parse import urlencode

import click

from distsync.cache_models import CachedLine, CacheStats, LinesPage
from distsync.command.cache_views import lines_table, stats_page
from distsync.command.calls import Caller
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options, limit_option
from distsync.command.output import emit, render_json, tell_more
from distsync.command.status import look_around, name_of
from distsync.errors import DistSyncError

_DEADLINE_SECONDS: Final = 5.0
_PAGE: Final = 500

T = TypeVar("T")
Lines: TypeAlias = tuple[list[CachedLine], bool]


@click.command()
@cluster_options
@click.pass_obj
def stats(options: Options) -> None:
    """Show how much each node holds, and what has happened there since it started."""

    async def ask(caller: Caller, url: str) -> CacheStats:
        return await caller.get(f"{url}/cache", CacheStats)

    told = asyncio.run(_ask_nodes(options.urls, None, ask))
    if options.json:
        emit(render_json({"nodes": [{"name": name, "stats": one} for name, one in told]}))
    else:
        emit(stats_page(told))


@click.command()
@click.option("--node", metavar="NAME", help="Only of this node.")
@limit_option(" of each node")
@cluster_options
@click.pass_obj
def lines(options: Options, node: str | None, limit: int) -> None:
    """List the lines that nodes hold, with their states: M, E or S."""

    async def ask(caller: Caller, url: str) -> Lines:
        return await _collect(caller, url, limit)

    told = asyncio.run(_ask_nodes(options.urls, node, ask))
    if options.json:
        shown = [{"name": name, "lines": held, "more": more} for name, (held, more) in told]
        emit(render_json({"nodes": shown}))
        return
    emit(lines_table([(name, line) for name, (held, _) in told for line in held]))
    if any(more for _, (_, more) in told):
        tell_more()


async def _collect(caller: Caller, url: str, limit: int) -> Lines:
    held: list[CachedLine] = []
    after: str | None = ""
    while after is not None and (not limit or len(held) < limit):
        wanted = min(_PAGE, limit - len(held)) if limit else _PAGE
        query = urlencode({"limit": wanted, **({"after": after} if after else {})})
        page = await caller.get(f"{url}/debug/cache/lines?{query}", LinesPage)
        held += page.lines
        after = page.next
    return held, after is not None


async def _ask_nodes(
    urls: tuple[str, ...], only: str | None, ask: Callable[[Caller, str], Awaitable[T]]
) -> list[tuple[str, T]]:
    """Ask each node that is there, or the one of that name; by name.

    Raises:
        Failure: there is none, or none of that name.
        DistSyncError: what the first that refused said.
    """
    views = await look_around(urls)
    if only is not None:
        views = [view for view in views if name_of(view) == only]
        if not views:
            raise Failure(f"there is no node {only}", code="not_found")
    there = [view for view in views if view.said is not None]
    if not there:
        raise Failure(f"no node answers: {views[0].silence}", code="unavailable")
    async with Caller(deadline_seconds=_DEADLINE_SECONDS) as caller:
        answers = await asyncio.gather(
            *(ask(caller, view.url) for view in there), return_exceptions=True
        )
    told: list[tuple[str, T]] = []
    failures: list[BaseException] = []
    for view, answer in zip(there, answers, strict=True):
        if not isinstance(answer, BaseException):
            told.append((name_of(view), answer))
        elif isinstance(answer, DistSyncError):
            failures.append(answer)
            click.echo(f"distsync: {name_of(view)}: {answer.detail}", err=True)
        else:
            raise answer
    if not told:
        raise failures[0]
    return told
