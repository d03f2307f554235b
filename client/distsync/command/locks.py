"""`distsync lock`: locks from a shell."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import click

from distsync.client import AsyncClient
from distsync.command import interruptible
from distsync.command.admin import Admin, admin_options
from distsync.command.completion import complete_lock_name
from distsync.command.connecting import ask, connect
from distsync.command.durations import DurationType, format_duration
from distsync.command.failures import Failure
from distsync.command.lock_options import LockRequest, lock_options, name_argument, why_not
from distsync.command.lock_run import run
from distsync.command.options import Options, cluster_options
from distsync.command.output import emit, render_json, render_table
from distsync.core import new_request_id
from distsync.errors import DistSyncError, NotHolder
from distsync.models import GrantBody, LockInfo


@click.group()
def lock() -> None:
    """Take, release, list and watch locks, and run commands under them."""


@lock.command()
@lock_options
@click.option(
    "--wait", type=DurationType(), default="0", show_default=True, help="How long to wait for it."
)
@cluster_options
@click.pass_obj
def acquire(options: Options, /, wait: int, **request: Any) -> None:
    """Take a lock and leave it taken until `lock release` or the end of its lease.

    Nobody renews it: choose a --ttl for all that is to be done, or use `lock run`.
    """

    async def take() -> dict[str, Any]:
        async with connect(options) as client:
            held = LockRequest(wait=wait, **request).of(client)
            try:
                await held.acquire()
            except DistSyncError as error:
                reason = await why_not(client, held.name, error)
                raise Failure(reason, code=error.code) from None
            return {
                "name": held.name,
                "owner": held.owner,
                "mode": "shared" if held.shared else "exclusive",
                "token": held.token,
                "expires_in_ms": int(held.expires_in() * 1000),
            }

    grant = interruptible.run(take())
    if options.json:
        emit(render_json(grant))
        return
    headings = ("NAME", "MODE", "TOKEN", "EXPIRES IN", "OWNER")
    expires_in = format_duration(grant["expires_in_ms"])
    row = (grant["name"], grant["mode"], grant["token"], expires_in, grant["owner"])
    emit(render_table(headings, [row]))


@lock.command()
@name_argument
@click.option("--token", type=click.IntRange(min=1), help="Of the grant, as acquire printed it.")
@click.option("--owner", help="Of the grant  [default: asked for by the token].")
@click.option(
    "--force",
    is_flag=True,
    help="End the grant with that --token, or without one every grant, as an administrator.",
)
@cluster_options
@admin_options
@click.pass_obj
def release(
    options: Options,
    name: str,
    token: int | None,
    owner: str | None,
    force: bool,
    secret_file: Path | None,
    peer_url: str | None,
) -> None:
    """Give back a lock that `lock acquire` took, or --force it from whoever holds it."""
    if force:
        asyncio.run(
            _force_release(Admin(options, secret_file, peer_url), name, owner or "", token or 0)
        )
    elif token is None:
        raise click.UsageError("--token is needed (or --force, for administrators)")
    else:
        asyncio.run(_release(options, name, owner, token))
    emit(render_json({"name": name, "released": True}) if options.json else f"{name} released")


async def _release(options: Options, name: str, owner: str | None, token: int) -> None:
    async with connect(options) as client:
        if owner is None:
            holders = (await client.lock_info(name)).holders
            owner = next((holder.owner for holder in holders if holder.token == token), None)
        if owner is None:
            raise Failure(f"{name} is not held with token {token} (not_holder)", code="not_holder")
        body = GrantBody(name=name, owner=owner, token=token, request_id=new_request_id())
        # Through the library's core: it repeats the call under one request id.
        await client._core.release(body, give_up_at=None)


async def _force_release(admin: Admin, name: str, owner: str, token: int) -> None:
    async with admin:
        try:
            await admin.force_release(name, owner, token, new_request_id())
        except NotHolder as error:
            named = " by that owner or token" if owner or token else ""
            raise Failure(f"{name} is not held{named} (not_holder)", code=error.code) from None


@lock.command()
@click.argument("above", type=click.IntRange(min=1, max=2**52))
@cluster_options
@admin_options
@click.pass_obj
def raise_tokens(
    options: Options, above: int, secret_file: Path | None, peer_url: str | None
) -> None:
    """Issue only fencing tokens above a number, as an administrator.

    For a cluster that was restored from a backup or made anew and does not know which tokens were
    issued meanwhile or before.
    """

    async def send() -> None:
        async with Admin(options, secret_file, peer_url) as admin:
            await admin.raise_tokens(above)

    asyncio.run(send())
    emit(render_json({"above": above}) if options.json else f"tokens are above {above} from now on")


@lock.command()
@click.argument("prefix", default="", shell_complete=complete_lock_name)
@cluster_options
@click.pass_obj
def ls(options: Options, prefix: str) -> None:
    """List the locks that are held or waited for."""

    async def collect(client: AsyncClient) -> list[LockInfo]:
        return [info async for info in client.locks(prefix)]

    infos = ask(options, collect)
    if options.json:
        emit(render_json({"locks": infos}))
        return
    headings = ("NAME", "MODE", "LIMIT", "TOKEN", "HOLDERS", "WAITERS", "EXPIRES IN", "OWNER")
    emit(render_table(headings, [_row(info) for info in infos]))


def _row(info: LockInfo) -> tuple[object, ...]:
    """Of several holders the one whose lease ends last is shown."""
    last = max(info.holders, key=lambda holder: holder.expires_in_ms, default=None)
    return (
        info.name,
        info.mode,
        info.limit,
        info.token,
        len(info.holders),
        info.waiter_count,
        format_duration(last.expires_in_ms) if last is not None else None,
        last.owner if last is not None else None,
    )


@lock.command()
@name_argument
@cluster_options
@click.pass_obj
def show(options: Options, name: str) -> None:
    """Show who holds a lock and who waits for it."""
    info = ask(options, lambda client: client.lock_info(name))
    emit(render_json(info) if options.json else _page(info))


def _page(info: LockInfo) -> str:
    if not info.holders and not info.waiters:
        return f"{info.name} is free"
    holders = [
        ("holds", h.mode, h.token, format_duration(h.expires_in_ms), h.owner) for h in info.holders
    ]
    waiters = [
        (f"waits, {w.position + 1}.", w.mode, None, format_duration(w.gives_up_in_ms), w.owner)
        for w in info.waiters
    ]
    limit = f", {info.limit} permits" if info.limit is not None else ""
    hidden = info.waiter_count - len(info.waiters)
    more = f"\nand {hidden} more that wait" if hidden > 0 else ""
    table = render_table(("", "MODE", "TOKEN", "ENDS IN", "OWNER"), [*holders, *waiters])
    return f"{info.name}{limit}\n{table}{more}"


@lock.command()
@name_argument
@cluster_options
@click.pass_obj
def watch(options: Options, name: str) -> None:
    """Print the state of a lock now and after each change, until Ctrl-C."""

    async def follow() -> None:
        async with connect(options) as client:
            async for info in client.watch(name):
                emit(render_json(info) if options.json else _line(info))

    interruptible.run(follow())


def _line(info: LockInfo) -> str:
    now = time.strftime("%H:%M:%S")
    waiting = f", {info.waiter_count} waiting" if info.waiter_count else ""
    if not info.holders:
        return f"{now}  {info.name} is free{waiting}"
    owners = ", ".join(f"{holder.owner} (token {holder.token})" for holder in info.holders)
    return f"{now}  {info.name} is held {info.mode} by {owners}{waiting}"


lock.add_command(run)
