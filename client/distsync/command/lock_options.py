"""What `lock acquire` and `lock run` are told of a lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from distsync.client import AsyncClient
from distsync.command.completion import complete_lock_name
from distsync.command.durations import DurationType
from distsync.command.output import printable
from distsync.errors import DistSyncError, LockHeld, WaitTimeout
from distsync.locks import Lock

_MAX_LIMIT = 1_000_000
_TELL_DEADLINE_SECONDS = 2.0
_SHOWN_HOLDERS = 3

_Function = TypeVar("_Function", bound=Callable[..., Any])

name_argument = click.argument("name", shell_complete=complete_lock_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class LockRequest:
    """A lock to be taken; durations are milliseconds, a `wait` of None is for ever."""

    name: str
    ttl: int
    wait: int | None
    shared: bool
    limit: int | None
    owner: str | None

    def of(self, client: AsyncClient) -> Lock:
        """Return it as a lock of the client library."""
        ttl = self.ttl / 1000
        wait = None if self.wait is None else self.wait / 1000
        if self.limit is not None:
            return client.semaphore(self.name, self.limit, ttl=ttl, wait=wait, owner=self.owner)
        return client.lock(self.name, ttl=ttl, wait=wait, shared=self.shared, owner=self.owner)


async def holders_of(client: AsyncClient, name: str) -> str:
    """Return who holds a lock, for a message; empty when nobody does or nobody tells."""
    try:
        async with asyncio.timeout(_TELL_DEADLINE_SECONDS):
            holders = (await client.lock_info(name)).holders
    except (DistSyncError, TimeoutError):
        return ""
    shown = [printable(holder.owner) for holder in holders[:_SHOWN_HOLDERS]]
    hidden = len(holders) - len(shown)
    return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


async def why_not(client: AsyncClient, name: str, error: DistSyncError) -> str:
    """Say for a person why a lock was not acquired."""
    if not isinstance(error, (LockHeld, WaitTimeout)):
        return f"{error.detail} ({error.code})"
    owners = await holders_of(client, name)
    held = f"{name} is held by {owners}" if owners else f"{name} is not available"
    hint = "" if isinstance(error, WaitTimeout) else "; --wait 10s would wait for it"
    return f"{held}{hint} ({error.code})"


def lock_options(function: _Function) -> _Function:
    """Add the name and the options of a `LockRequest`, but for `--wait`."""
    for option in (
        click.option("--owner", help="On whose behalf; not re-entrant.  [default: a new one]"),
        click.option(
            "--limit",
            type=click.IntRange(1, _MAX_LIMIT),
            metavar="N",
            help="Take one of N permits: a counting semaphore.",
        ),
        click.option("--shared", is_flag=True, help="Hold it together with other shared holders."),
        click.option(
            "--ttl",
            type=DurationType(least_ms=100, most_ms=86_400_000),
            default="10s",
            show_default=True,
            help="The lease: how long it lasts without its holder.",
        ),
        name_argument,
    ):
        function = option(function)
    return function
