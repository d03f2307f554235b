"""`distsync queue schedule, schedules, unschedule`: messages that are pushed again and again."""

from __future__ import annotations

from io import BufferedIOBase
from typing import Final

import click

from distsync.command.bodies import body_options, choose_source
from distsync.command.completion import complete_schedule_id, complete_timezone
from distsync.command.connecting import ask
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, printable, render_json
from distsync.command.queue_bodies import read_body
from distsync.command.queue_options import (
    TTL,
    group_option,
    priority_option,
    queue_argument,
)
from distsync.command.queue_views import schedule_line, schedule_table

_MAX_BODY_BYTES: Final = 16 * 1024

_id_argument = click.argument("schedule_id", metavar="ID", shell_complete=complete_schedule_id)


@click.command()
@queue_argument
@_id_argument
@click.argument("body", required=False)
@body_options("BODY")
@click.option(
    "--cron",
    required=True,
    metavar="EXPRESSION",
    help="Minute, hour, day, month and weekday; or six fields with seconds in front.",
)
@click.option(
    "--timezone",
    default="UTC",
    show_default=True,
    metavar="NAME",
    shell_complete=complete_timezone,
    help="By whose clock; as Europe/Berlin.",
)
@priority_option
@click.option(
    "--ttl", type=TTL, help="Each expires unless claimed by then.  [default: the queue's]"
)
@group_option
@cluster_options
@click.pass_obj
def schedule(
    options: Options,
    name: str,
    schedule_id: str,
    body: str | None,
    *,
    from_stdin: bool,
    file: BufferedIOBase | None,
    cron: str,
    timezone: str,
    priority: int,
    ttl: int | None,
    group: str | None,
) -> None:
    """Have a message pushed at the times of a cron expression.

    What has the same ID in the queue is replaced. Without BODY the message is read from standard
    input, as it is.
    """
    source = choose_source("BODY", body, from_stdin=from_stdin, file=file)
    text = read_body(source, _MAX_BODY_BYTES)

    told = ask(
        options,
        lambda client: client.queue(name).schedule(
            schedule_id,
            cron,
            text,
            timezone=timezone,
            priority=priority,
            ttl=None if ttl is None else ttl / 1000,
            group=group,
        ),
    )
    emit(render_json(told) if options.json else schedule_line(told))


@click.command()
@queue_argument
@cluster_options
@click.pass_obj
def schedules(options: Options, name: str) -> None:
    """List the schedules of a queue, and when each is due next."""
    told = ask(options, lambda client: client.queue(name).schedules())
    emit(render_json({"schedules": told}) if options.json else schedule_table(told))


@click.command()
@queue_argument
@_id_argument
@cluster_options
@click.pass_obj
def unschedule(options: Options, name: str, schedule_id: str) -> None:
    """Push it no more; it is no error if there is no such schedule."""
    existed = ask(options, lambda client: client.queue(name).unschedule(schedule_id))
    if options.json:
        emit(render_json({"id": schedule_id, "deleted": existed}))
    else:
        shown = printable(schedule_id)
        emit(f"{shown} is unscheduled" if existed else f"there is no schedule {shown}")
