"""`distsync member`: who is in the cluster. One change at a time; each is on disk when it is told.

A new node starts with `distsync node` and no cluster of its own; `member add` makes it a learner,
which receives the log and does not vote, and `promote` a voter. Removal is for good: a removed
member's id never returns.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from distsync.command.admin import Admin, admin_options, leader_status
from distsync.command.calls import Caller, MembershipAnswer
from distsync.command.durations import DurationType, format_duration
from distsync.command.options import Options, cluster_options, parse_urls
from distsync.command.output import emit, render_json, render_table
from distsync.errors import Conflict
from distsync.models import Member

_CATCH_UP_POLL_SECONDS = 0.2


def _one_url(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        urls = parse_urls(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    if len(urls) > 1:
        raise click.BadParameter("one URL is expected", ctx, param)
    return urls[0]


@click.group()
def member() -> None:
    """Change who is in the cluster (administrators only)."""


@member.command("list")
@cluster_options
@click.pass_obj
def list_members(options: Options) -> None:
    """List the members as the leader sees them."""

    async def ask() -> MembershipAnswer:
        async with Caller() as caller:
            status = await leader_status(caller, options.urls)
            return MembershipAnswer(config_index=status.config_index, members=status.members)

    _show(options, asyncio.run(ask()))


@member.command()
@click.argument("new_peer_url", metavar="PEER_URL", callback=_one_url)
@click.option("--voter", is_flag=True, help="Wait until it has caught up, then promote it.")
@click.option("--wait", type=DurationType(), default="1m", help="How long; with --voter.")
@cluster_options
@admin_options
@click.pass_obj
def add(
    options: Options,
    new_peer_url: str,
    voter: bool,
    wait: int,
    secret_file: Path | None,
    peer_url: str | None,
) -> None:
    """Add the empty node that listens at PEER_URL as a learner."""

    async def change() -> MembershipAnswer:
        async with Admin(options, secret_file, peer_url) as admin:
            who = await admin.identity(new_peer_url)
            answer = await admin.add(who)
            return await _promote_when_ready(admin, who.member_id, wait) if voter else answer

    _show(options, asyncio.run(change()))


@member.command()
@click.argument("name_or_id")
@click.option("--wait", type=DurationType(), default="0", help="How long it may still catch up.")
@cluster_options
@admin_options
@click.pass_obj
def promote(
    options: Options, name_or_id: str, wait: int, secret_file: Path | None, peer_url: str | None
) -> None:
    """Make a learner that has caught up a voter."""

    async def change() -> MembershipAnswer:
        async with Admin(options, secret_file, peer_url) as admin:
            found = await admin.member(name_or_id)
            return await _promote_when_ready(admin, found.id, wait)

    _show(options, asyncio.run(change()))


@member.command()
@click.argument("name_or_id")
@cluster_options
@admin_options
@click.pass_obj
def demote(
    options: Options, name_or_id: str, secret_file: Path | None, peer_url: str | None
) -> None:
    """Make a voter a learner."""

    async def change() -> MembershipAnswer:
        async with Admin(options, secret_file, peer_url) as admin:
            return await admin.change((await admin.member(name_or_id)).id, "demote")

    _show(options, asyncio.run(change()))


@member.command()
@click.argument("name_or_id")
@cluster_options
@admin_options
@click.pass_obj
def remove(
    options: Options, name_or_id: str, secret_file: Path | None, peer_url: str | None
) -> None:
    """Remove a member for good: its id can never come back."""

    async def change() -> MembershipAnswer:
        async with Admin(options, secret_file, peer_url) as admin:
            return await admin.remove((await admin.member(name_or_id)).id)

    _show(options, asyncio.run(change()))


@member.command()
@click.argument("name_or_id", required=False)
@cluster_options
@admin_options
@click.pass_obj
def transfer(
    options: Options, name_or_id: str | None, secret_file: Path | None, peer_url: str | None
) -> None:
    """Hand leadership to a member, or to the most advanced voter."""

    async def change() -> str:
        async with Admin(options, secret_file, peer_url) as admin:
            target = (await admin.member(name_or_id)).id if name_or_id else None
            return (await admin.transfer(target)).leader

    leader = asyncio.run(change())
    emit(render_json({"leader": leader}) if options.json else f"{leader} leads")


@member.command()
@click.argument("removed_peer_url", metavar="PEER_URL", callback=_one_url)
@cluster_options
@admin_options
@click.pass_obj
def archive(
    options: Options, removed_peer_url: str, secret_file: Path | None, peer_url: str | None
) -> None:
    """Move the data of the removed node at PEER_URL aside, so that it starts again empty."""

    async def change() -> str:
        async with Admin(options, secret_file, peer_url) as admin:
            return (await admin.archive(removed_peer_url)).archived_to

    where = asyncio.run(change())
    emit(render_json({"archived_to": where}) if options.json else f"archived to {where}")


async def _promote_when_ready(admin: Admin, member_id: str, wait_ms: int) -> MembershipAnswer:
    """Promote; a learner that still lags is refused with a conflict, so ask again for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_ms / 1000
    while True:
        try:
            return await admin.change(member_id, "promote")
        except Conflict:
            if loop.time() + _CATCH_UP_POLL_SECONDS > deadline:
                raise
            await asyncio.sleep(_CATCH_UP_POLL_SECONDS)


def _show(options: Options, answer: MembershipAnswer) -> None:
    if options.json:
        emit(render_json(answer))
        return
    headings = ("NAME", "ROLE", "VOTER", "MATCH", "LAST CONTACT", "ID", "PEER URL", "CLIENT URL")
    emit(render_table(headings, [_row(m) for m in sorted(answer.members, key=lambda m: m.name)]))


def _row(m: Member) -> tuple[object, ...]:
    contact = format_duration(m.last_contact_ms) if m.last_contact_ms is not None else None
    return (m.name, m.role, m.voter, m.match_index, contact, m.id, m.peer_url, m.client_url)
