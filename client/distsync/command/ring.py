"""`distsync ring`: who serves, how evenly, and who owns a key."""

from __future__ import annotations

import asyncio
from urllib.parse import quote

import click

from distsync.command.calls import Caller, Ring
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, printable, render_json, render_table
from distsync.errors import DistSyncError

_DEADLINE_SECONDS = 2.0


@click.command()
@click.argument("key", required=False)
@cluster_options
@click.pass_obj
def ring(options: Options, key: str | None) -> None:
    """Show the ring that places queues and cached values; with KEY, who owns it.

    Asks the first node of --url that answers. A share far from the others' hints at a weight, or at
    a node that has only just entered.
    """
    answer = asyncio.run(_ask(options.urls, key))
    if options.json:
        emit(render_json(answer))
    elif key is not None:
        owner = answer.owner
        if owner is None:
            raise Failure("the ring is empty: no node serves yet", code="unavailable")
        emit(f"{printable(key)} is owned by {printable(owner)} (epoch {answer.epoch})")
    else:
        headings = ("NAME", "SHARE", "WEIGHT", "URL")
        rows = [
            (server.name, f"{server.share:.1%}", f"{server.weight:g}", server.client_url)
            for server in answer.servers
        ]
        emit(render_table(headings, rows))
        emit(f"epoch {answer.epoch}, {answer.virtual_nodes} virtual nodes each")


async def _ask(urls: tuple[str, ...], key: str | None) -> Ring:
    query = "" if key is None else f"?key={quote(key, safe='')}"
    failure: DistSyncError | None = None
    async with Caller(deadline_seconds=_DEADLINE_SECONDS) as caller:
        for url in urls:
            try:
                return await caller.get(f"{url}/cluster/ring{query}", Ring)
            except DistSyncError as error:
                failure = error
    detail = failure.detail if failure is not None else "no URL given"
    raise Failure(f"no node answers: {detail}", code="unavailable")
