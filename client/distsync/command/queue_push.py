"""`distsync queue push`: a message from the command line, a file or standard input; or one a line.

Lines are pushed as they come: all of what one read returned, in batches, and then the next read. So
a slow writer's line does not wait for a batch to fill, and a fast one's go a hundred at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import click

from distsync.command.bodies import body_options, choose_source
from distsync.command.connecting import TIMEOUT_SECONDS
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, render_json
from distsync.command.queue_bodies import decoded, read_body
from distsync.command.queue_options import (
    DELAY,
    TTL,
    group_option,
    priority_option,
    queue_argument,
)
from distsync.errors import DistSyncError
from distsync.queue_calls import MAX_BODY_BYTES
from distsync.queue_models import Message
from distsync.sync_client import Client
from distsync.sync_queues import SyncQueue

_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Extras:
    """What is pushed with each body; durations are milliseconds."""

    delay: int
    priority: int
    ttl: int | None
    dedupe_id: str | None
    group: str | None

    def message(self, body: str) -> Message:
        return Message(
            body,
            delay=self.delay / 1000,
            priority=self.priority,
            ttl=None if self.ttl is None else self.ttl / 1000,
            dedupe_id=self.dedupe_id,
            group=self.group,
        )


@click.command()
@queue_argument
@click.argument("body", required=False)
@body_options("BODY")
@click.option("--lines", is_flag=True, help="Each line is a message; pushed as they come.")
@click.option("--delay", type=DELAY, default="0", show_default=True, help="Claimable after this.")
@priority_option
@click.option("--ttl", type=TTL, help="Expires unless claimed by then.  [default: the queue's]")
@click.option("--dedupe-id", help="Another push with this id within the queue's window is none.")
@group_option
@cluster_options
@click.pass_obj
def push(
    options: Options,
    /,
    name: str,
    body: str | None,
    *,
    from_stdin: bool,
    file: BufferedIOBase | None,
    lines: bool,
    **extras: Any,
) -> None:
    """Put a message into a queue, or one for each line, and print their ids.

    Without BODY the message is read from standard input, as it is. A new NAME makes the queue.
    """
    source = choose_source("BODY", body, from_stdin=from_stdin, file=file)
    if lines and extras["dedupe_id"]:
        raise click.UsageError("with --lines, --dedupe-id would leave only the first line")
    make = _Extras(**extras)
    with Client(options.urls, timeout=TIMEOUT_SECONDS) as client:
        queue = client.queue(name)
        if lines:
            _push_chunks(options, queue, _line_chunks(source), make)
            return
        _show(options, queue.push_many([make.message(read_body(source))]))


def _line_chunks(source: BufferedIOBase) -> Iterator[list[str]]:
    """Yield lines, each time those that are there; a newline ends a line and is not part of it."""
    number = 0
    rest = b""
    while chunk := source.read1(_READ_BYTES):
        *complete, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_BODY_BYTES:
            complete, rest = [*complete, rest], b""  # refused below
        yield [decoded(line, f"line {number + i}") for i, line in enumerate(complete, start=1)]
        number += len(complete)
    if rest:
        yield [decoded(rest, f"line {number + 1}")]


def _push_chunks(
    options: Options, queue: SyncQueue, chunks: Iterable[list[str]], make: _Extras
) -> None:
    count = 0
    try:
        for lines in chunks:
            if lines:
                ids = queue.push_many([make.message(line) for line in lines])
                count += len(ids)
                _show(options, ids)
    except DistSyncError as error:
        if before := error.fields.get("pushed"):
            count += len(before)
            _show(options, before)
        reason = f"{error} ({error.code})"
        raise Failure(f"after {count} messages: {reason}", code=error.code) from None
    except Failure as failure:
        raise Failure(f"after {count} messages: {failure.message}", code=failure.code) from None


def _show(options: Options, ids: list[str]) -> None:
    emit(render_json({"ids": ids}) if options.json else "\n".join(ids))
