"""`distsync queue stats, ls, config, pause, resume, purge, redrive`: queues as a whole."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from distsync.client import AsyncClient
from distsync.command.completion import complete_queue_name
from distsync.command.connecting import ask
from distsync.command.durations import DurationType
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, printable, render_json
from distsync.command.queue_options import TTL, queue_argument
from distsync.command.queue_views import config_table, queues_table, stats_page
from distsync.errors import QueueNotFound
from distsync.queue_models import QueueConfig, QueueStats

_CONCURRENT_STATS = 8


@click.command()
@queue_argument
@cluster_options
@click.pass_obj
def stats(options: Options, name: str) -> None:
    """Show how much is in a queue, and what has happened."""
    told = ask(options, lambda client: client.queue(name).stats())
    emit(render_json({"name": name, "stats": told}) if options.json else stats_page(name, told))


@click.command("ls")
@click.argument("prefix", default="", shell_complete=complete_queue_name)
@click.option("--names", is_flag=True, help="Only the names.")
@cluster_options
@click.pass_obj
def list_queues(options: Options, prefix: str, *, names: bool) -> None:
    """List queues and how much is in them."""

    async def collect(client: AsyncClient) -> list[tuple[str, QueueStats | None]]:
        found = [name async for name in client.queues(prefix)]
        if names:
            return [(name, None) for name in found]
        told = await _stats_of(client, found)
        return [(name, told[name]) for name in found if name in told]

    queues = ask(options, collect)
    if options.json:
        shown = [
            name if stats is None else {"name": name, "stats": stats} for name, stats in queues
        ]
        emit(render_json({"queues": shown}))
    elif not names:
        emit(queues_table([(name, stats) for name, stats in queues if stats is not None]))
    else:
        for name, _ in queues:
            emit(printable(name))


async def _stats_of(client: AsyncClient, names: list[str]) -> dict[str, QueueStats]:
    """Ask for the statistics of queues, some at a time; one may have gone meanwhile."""
    told: dict[str, QueueStats] = {}
    left = iter(names)

    async def ask_on() -> None:
        for name in left:
            try:
                told[name] = await client.queue(name).stats()
            except QueueNotFound:
                continue

    await asyncio.gather(*(ask_on() for _ in range(_CONCURRENT_STATS)))
    return told


@click.command()
@queue_argument
@click.option("--max-length", type=click.IntRange(min=0), help="Pushes beyond it are refused.")
@click.option("--max-deliveries", type=click.IntRange(min=0), help="Then it is a dead letter.")
@click.option(
    "--dedupe-window",
    type=DurationType(most_ms=7 * 86_400_000),
    help="How long dedupe ids are remembered.",
)
@click.option("--ttl", type=TTL, help="Messages that say nothing else expire after this.")
@click.option(
    "--rate-count", type=click.IntRange(min=0), help="On average so many are delivered ..."
)
@click.option(
    "--rate-per",
    type=DurationType(least_ms=1, most_ms=86_400_000),
    help="... in each such time, and at most twice as many in any one.",
)
@click.option("--create", is_flag=True, help="Make the queue if it is not there.")
@cluster_options
@click.pass_obj
def config(options: Options, /, name: str, *, create: bool, **change: Any) -> None:
    """Change what is given and show the configuration; 0 is no limit."""
    for duration in ("dedupe_window", "ttl", "rate_per"):
        if change[duration] is not None:
            change[duration] /= 1000

    async def configure(client: AsyncClient) -> QueueConfig:
        queue = client.queue(name)
        if not create and all(value is None for value in change.values()):
            return (await queue.stats()).config
        return await queue.configure(create=create, **change)

    told = ask(options, configure)
    emit(render_json(told) if options.json else config_table(told))


@click.command()
@queue_argument
@cluster_options
@click.pass_obj
def pause(options: Options, name: str) -> None:
    """Have nothing delivered until it is resumed."""
    told = ask(options, lambda client: client.queue(name).pause())
    emit(render_json(told) if options.json else f"{name} is paused")


@click.command()
@queue_argument
@cluster_options
@click.pass_obj
def resume(options: Options, name: str) -> None:
    """Have messages delivered again."""
    told = ask(options, lambda client: client.queue(name).resume())
    emit(render_json(told) if options.json else f"{name} is resumed")


@click.command()
@queue_argument
@click.option("--dead", is_flag=True, help="The dead letters, not the messages.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_options
@click.pass_obj
def purge(options: Options, name: str, *, dead: bool, yes: bool) -> None:
    """Remove all messages, claimed ones too, or all dead letters."""
    what = "dead letters" if dead else "messages"
    if not yes:
        _ask_whether(f"Remove all {what} of {printable(name)}?")

    removed = ask(options, lambda client: client.queue(name).purge(dead=dead))
    emit(render_json({"removed": removed}) if options.json else f"{removed} removed")


def _ask_whether(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("--yes is needed where nobody can be asked")
    if not click.confirm(question, err=True):
        raise Failure("nothing was removed")


@click.command()
@queue_argument
@cluster_options
@click.pass_obj
def redrive(options: Options, name: str) -> None:
    """Put all dead letters back into the queue."""
    moved = ask(options, lambda client: client.queue(name).redrive())
    emit(render_json({"moved": moved}) if options.json else f"{moved} put back")
