"""`distsync completion bash|zsh|fish`: print the script that makes the shell complete."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.parse import urlencode

import click
from click.shell_completion import CompletionItem, get_completion_class

from distsync.command.options import Options
from distsync.command.output import emit
from distsync.paths import queue_path

_COMPLETION_DEADLINE_SECONDS = 0.5
_COMPLETIONS = 50
_LINES_LOOKED_AT = 500


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(distsync completion bash)"
    zsh:  eval "$(distsync completion zsh)"
    fish: distsync completion fish | source
    """
    complete = get_completion_class(shell)
    if complete is None:  # the choices above are click's own
        raise click.UsageError(f"{shell} is not supported", ctx)
    emit(complete(ctx.find_root().command, {}, "distsync", "_DISTSYNC_COMPLETE").source())


def complete_lock_name(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the locks that exist; silence when no node answers at once."""
    locks = _ask(ctx, _page("locks", incomplete), "locks")
    return [CompletionItem(lock["name"]) for lock in locks if isinstance(lock, dict)]


def complete_queue_name(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the queues that exist; silence when no node answers at once."""
    return [CompletionItem(name) for name in _ask(ctx, _page("queues", incomplete), "queues")]


def complete_cache_key(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer keys that a node has at hand; silence when none answers at once."""
    query = urlencode({"limit": _LINES_LOOKED_AT})
    lines = _ask(ctx, f"/debug/cache/lines?{query}", "lines")
    keys = [line["key"] for line in lines if isinstance(line, dict)]
    return [CompletionItem(key) for key in keys if key.startswith(incomplete)][:_COMPLETIONS]


def complete_schedule_id(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the schedules of the queue that was named before."""
    path = f"{queue_path(ctx.params['name'])}/schedules"
    ids = [one["id"] for one in _ask(ctx, path, "schedules") if isinstance(one, dict)]
    return [CompletionItem(id) for id in ids if id.startswith(incomplete)]


def complete_timezone(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the time zones that this machine knows."""
    from zoneinfo import available_timezones  # for this alone

    return [
        CompletionItem(zone)
        for zone in sorted(available_timezones())
        if zone.startswith(incomplete)
    ]


def _page(what: str, prefix: str) -> str:
    return f"/{what}?{urlencode({'prefix': prefix, 'limit': _COMPLETIONS})}"


def _ask(ctx: click.Context, path: str, what: str) -> list[Any]:
    for url in ctx.ensure_object(Options).urls:
        try:
            with urllib.request.urlopen(  # noqa: S310 - the scheme was checked by parse_urls
                f"{url}{path}", timeout=_COMPLETION_DEADLINE_SECONDS
            ) as answer:
                return list(json.load(answer)[what])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []
