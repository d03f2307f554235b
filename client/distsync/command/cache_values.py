"""`distsync cache get, set, del, invalidate-tag`: values by their keys."""

from __future__ import annotations

import base64
import sys
from io import BufferedIOBase
from typing import Any, Final

import click
import msgspec

from distsync.cache_models import CacheEntry
from distsync.client import AsyncClient
from distsync.command.bodies import body_options, choose_source
from distsync.command.completion import complete_cache_key
from distsync.command.connecting import ask
from distsync.command.durations import DurationType
from distsync.command.failures import Failure
from distsync.command.options import Options, cluster_options
from distsync.command.output import body_for, emit, printable, render_json

_MAX_VALUE_BYTES: Final = 1024 * 1024

_key_argument = click.argument("key", shell_complete=complete_cache_key)


@click.command()
@_key_argument
@cluster_options
@click.pass_obj
def get(options: Options, key: str) -> None:
    """Print a value: bytes as they are, anything else as JSON; ends with 1 if there is none.

    With --output json also its version, the state of the line at the node that answered, and what
    remains of its time.
    """
    entry = ask(options, lambda client: client.cache.get_entry(key))
    if not entry.found:
        raise Failure(f"{printable(key)} has no value (not_found)", code="not_found")
    if options.json:
        emit(render_json(_as_json(key, entry)))
    elif not isinstance(entry.value, bytes):
        emit(render_json(entry.value))
    elif sys.stdout.isatty():
        emit(body_for(entry.value.decode(errors="replace"), terminal=True))
    else:
        sys.stdout.buffer.write(entry.value)
        sys.stdout.buffer.flush()


def _as_json(key: str, entry: CacheEntry) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": key, "value": entry.value}
    if isinstance(entry.value, bytes):
        shown |= {"value": base64.b64encode(entry.value).decode(), "encoding": "base64"}
    shown |= {"version": entry.version, "state": entry.state}
    return shown if entry.ttl is None else {**shown, "ttl_ms": round(entry.ttl * 1000)}


@click.command("set")
@_key_argument
@click.argument("value", required=False)
@body_options("VALUE")
@click.option("--json", "is_json", is_flag=True, help="The value is JSON, not bytes.")
@click.option("--ttl", type=DurationType(least_ms=1), help="It expires after this.")
@click.option("--tag", "tags", multiple=True, help="See invalidate-tag; may be given again.")
@click.option(
    "--if-version", metavar="V", help="Only if this is its version; 0.0: if there is none."
)
@cluster_options
@click.pass_obj
def put(
    options: Options,
    /,
    key: str,
    value: str | None,
    *,
    from_stdin: bool,
    file: BufferedIOBase | None,
    is_json: bool,
    ttl: int | None,
    **terms: Any,
) -> None:
    """Write a value and print its version.

    Without VALUE it is read from standard input. It is kept as the bytes that it is, or with --json
    as what that says: a program then reads a number, a list and so on.
    """
    source = choose_source("VALUE", value, from_stdin=from_stdin, file=file)
    data = source.read(_MAX_VALUE_BYTES + 1)
    if len(data) > _MAX_VALUE_BYTES:
        raise Failure("the value is longer than 1 MiB", code="payload_too_large")
    stored = _parsed(data) if is_json else data

    seconds = None if ttl is None else ttl / 1000
    version = ask(options, lambda client: client.cache.set(key, stored, ttl=seconds, **terms))
    emit(render_json({"key": key, "version": version}) if options.json else version)


def _parsed(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise Failure(f"the value is not JSON: {error}", code="bad_request") from None


@click.command("del")
@click.argument(
    "keys", metavar="KEY...", nargs=-1, required=True, shell_complete=complete_cache_key
)
@click.option("--if-version", metavar="V", help="Only if this is its version; for one KEY.")
@cluster_options
@click.pass_obj
def delete(options: Options, keys: tuple[str, ...], if_version: str | None) -> None:
    """Remove values; one that is not there is no failure."""
    if if_version is not None and len(keys) > 1:
        raise click.UsageError("--if-version goes with one KEY")

    async def remove(client: AsyncClient) -> None:
        for key in keys:
            await client.cache.delete(key, if_version)
            removed = {"key": key, "removed": True}
            emit(render_json(removed) if options.json else f"{printable(key)} removed")

    ask(options, remove)


@click.command("invalidate-tag")
@click.argument("tag")
@cluster_options
@click.pass_obj
def invalidate_tag(options: Options, tag: str) -> None:
    """Remove every value that was set with a tag, on all nodes at once."""
    ask(options, lambda client: client.cache.invalidate_tag(tag))
    answer = {"tag": tag, "invalidated": True}
    emit(render_json(answer) if options.json else f"values with {printable(tag)} removed")
