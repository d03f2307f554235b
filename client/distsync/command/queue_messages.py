"""`distsync queue pop, ack, nack, peek, get, cancel, list`: messages, one by one."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast, get_args

import click

from distsync.batches import chunks
from distsync.client import AsyncClient
from distsync.command import interruptible
from distsync.command.connecting import ask, connect
from distsync.command.durations import DurationType
from distsync.command.failures import ExitCode, Failure
from distsync.command.options import Options, cluster_options, limit_option
from distsync.command.output import body_for, emit, render_json, tell_more
from distsync.command.queue_options import DELAY, queue_argument
from distsync.command.queue_views import message_page, message_table, peeked_table
from distsync.errors import StaleReceipt
from distsync.messages import ClaimedMessage
from distsync.queue_calls import MAX_BATCH, QueueCalls
from distsync.queue_models import MessageInfo, MessageOrder

_max_option = click.option(
    "--max",
    "count",
    type=click.IntRange(1, MAX_BATCH),
    default=1,
    show_default=True,
    metavar="N",
    help="How many messages at most.",
)


@click.command()
@queue_argument
@_max_option
@click.option(
    "--wait", type=DurationType(), default="0", show_default=True, help="How long for a message."
)
@click.option(
    "--visibility",
    type=DurationType(least_ms=1, most_ms=12 * 3_600_000),
    default="30s",
    show_default=True,
    help="How long each is claimed; then it is delivered again.",
)
@click.option("--ack", "acknowledge", is_flag=True, help="Acknowledge them once they are printed.")
@cluster_options
@click.pass_obj
def pop(
    options: Options, name: str, count: int, wait: int, visibility: int, *, acknowledge: bool
) -> None:
    """Claim messages and print their bodies; ends with 75 if there is none.

    With --output json their receipts are printed too, for `queue ack` and `queue nack`.
    """

    async def claim() -> bool:
        async with connect(options) as client:
            queue = client.queue(name)
            messages = await queue.pop(count, wait / 1000, visibility / 1000)
            if options.json:
                emit(render_json({"messages": [_claimed(message) for message in messages]}))
            else:
                for message in messages:
                    emit(body_for(message.body, terminal=sys.stdout.isatty()))
            if acknowledge:
                await queue.ack_many(messages)
            return bool(messages)

    if not interruptible.run(claim()):
        reason = f"{name} has no message to claim (queue_empty)"
        raise Failure(reason, exit_code=ExitCode.NOT_NOW, code="queue_empty")


def _claimed(message: ClaimedMessage) -> dict[str, Any]:
    return {
        "id": message.id,
        "body": message.body,
        "receipt": message.receipt,
        "deliveries": message.deliveries,
        "priority": message.priority,
        "group": message.group,
        "expires_in_ms": int(message.expires_in() * 1000),
    }


@click.command()
@queue_argument
@click.argument("receipts", metavar="RECEIPT...", nargs=-1, required=True)
@cluster_options
@click.pass_obj
def ack(options: Options, name: str, receipts: tuple[str, ...]) -> None:
    """Say that messages are done; they leave the queue."""

    async def settle(client: AsyncClient) -> None:
        calls = QueueCalls(client._core, name)
        stale: list[str] = []
        for batch in chunks(receipts, MAX_BATCH):
            try:
                await calls.ack(batch)
            except StaleReceipt as error:
                stale += error.stale or batch
        _check_stale(name, receipts, stale)

    ask(options, settle)
    done = {"acked": len(receipts)}
    emit(render_json(done) if options.json else f"{len(receipts)} acknowledged")


@click.command()
@queue_argument
@click.argument("receipts", metavar="RECEIPT...", nargs=-1, required=True)
@click.option("--delay", type=DELAY, default="0", show_default=True, help="Claimable after this.")
@click.option("--dead", is_flag=True, help="They become dead letters at once.")
@cluster_options
@click.pass_obj
def nack(options: Options, name: str, receipts: tuple[str, ...], delay: int, *, dead: bool) -> None:
    """Say that messages failed; they come again, or become dead letters."""

    async def settle(client: AsyncClient) -> list[str]:
        calls = QueueCalls(client._core, name)
        died: list[str] = []
        stale: list[str] = []
        for batch in chunks(receipts, MAX_BATCH):
            try:
                died += await calls.nack(batch, delay_ms=delay, dead=dead)
            except StaleReceipt as error:
                stale += error.stale or batch
        _check_stale(name, receipts, stale)
        return died

    died = ask(options, settle)
    if options.json:
        emit(render_json({"nacked": len(receipts), "dead": died}))
    else:
        emit(f"{len(receipts)} given back" + (f", {len(died)} of them dead" if died else ""))


def _check_stale(name: str, receipts: tuple[str, ...], stale: list[str]) -> None:
    if stale:
        raise StaleReceipt(
            f"{name}: {len(stale)} of {len(receipts)} claims had ended: {', '.join(stale)}",
            stale=stale,
        )


@click.command()
@queue_argument
@_max_option
@cluster_options
@click.pass_obj
def peek(options: Options, name: str, count: int) -> None:
    """Show the messages that a pop would claim now, without claiming them."""
    messages = ask(options, lambda client: client.queue(name).peek(count))
    emit(render_json({"messages": messages}) if options.json else peeked_table(messages))


@click.command()
@queue_argument
@click.argument("message_id", metavar="ID")
@cluster_options
@click.pass_obj
def get(options: Options, name: str, message_id: str) -> None:
    """Show one message, wherever it is."""
    message = ask(options, lambda client: client.queue(name).get(message_id))
    is_terminal = sys.stdout.isatty()
    emit(render_json(message) if options.json else message_page(message, terminal=is_terminal))


@click.command()
@queue_argument
@click.argument("message_id", metavar="ID")
@cluster_options
@click.pass_obj
def cancel(options: Options, name: str, message_id: str) -> None:
    """Take a message out that is not claimed; a dead letter too."""
    ask(options, lambda client: client.queue(name).cancel(message_id))
    answer = {"id": message_id, "cancelled": True}
    emit(render_json(answer) if options.json else f"{message_id} cancelled")


@click.command("list")
@queue_argument
@click.option(
    "--order",
    type=click.Choice(get_args(MessageOrder)),
    default="ready",
    show_default=True,
    help="Which messages; ready and delayed are those without a group.",
)
@limit_option()
@cluster_options
@click.pass_obj
def list_messages(options: Options, name: str, order: str, limit: int) -> None:
    """List messages, wherever they are."""
    wanted = cast(MessageOrder, order)
    messages, now_ms, is_more = asyncio.run(_collect(options, name, wanted, limit))
    if options.json:
        emit(render_json({"messages": messages, "now_ms": now_ms, "more": is_more}))
        return
    emit(message_table(wanted, messages, now_ms))
    if is_more:
        tell_more()


async def _collect(
    options: Options, name: str, order: MessageOrder, limit: int
) -> tuple[list[MessageInfo], int, bool]:
    """Return messages, the time on the clock of Redis, and whether there are more."""
    async with connect(options) as client:
        calls = QueueCalls(client._core, name)
        messages: list[MessageInfo] = []
        cursor, now_ms = "", 0
        while True:
            wanted = min(MAX_BATCH, limit + 1 - len(messages)) if limit else MAX_BATCH
            page = await calls.page(order, cursor, wanted)
            messages += page.messages
            now_ms = page.now_ms
            if limit and len(messages) > limit:
                return messages[:limit], now_ms, True
            if page.next is None:
                return messages, now_ms, False
            cursor = page.next
