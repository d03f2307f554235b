"""`distsync node`: run one node in this process."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distsync.command.durations import DurationType
from distsync.command.failures import ExitCode, Failure
from distsync.command.parent import die_with_parent

if TYPE_CHECKING:
    from distsync_node.settings import Settings

_PORT = click.IntRange(1, 65535)


@click.command(context_settings={"auto_envvar_prefix": "DISTSYNC", "show_default": True})
@click.option("--name", default=socket.gethostname, show_default="host name", help="Its own name.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Where it keeps its log and snapshots; one node a directory.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen on, for both ports.")
@click.option("--port", type=_PORT, default=8080, help="Port for clients.")
@click.option("--peer-port", type=_PORT, show_default="port + 100", help="Port for other nodes.")
@click.option("--peer-url", default="", help="Where other nodes reach it, if not host and port.")
@click.option("--client-url", default="", help="Where clients reach it, if not host and port.")
@click.option(
    "--members",
    default="",
    metavar="NAME=PEER_URL,...",
    help="All members, this node included, as name and peer URL.",
)
@click.option(
    "--bootstrap/--no-bootstrap",
    default=True,
    help="Whether the first of --members may create the cluster, once all are empty.",
)
@click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File with the secret that nodes and administrators share.",
)
@click.option("--voters", type=click.Choice(["1", "3", "5", "7"]), default="7", help="At most.")
@click.option(
    "--virtual-nodes",
    type=click.IntRange(1, 4_096),
    default=160,
    help="Points of a node on the hash ring; fixed once a node has entered the ring.",
)
@click.option("--heartbeat", type=DurationType(least_ms=10), default="100ms", help="Of the leader.")
@click.option(
    "--election-timeout",
    type=DurationType(least_ms=40),
    default="400ms",
    help="The shortest silence of a leader after which others campaign; the longest is twice it.",
)
@click.option(
    "--drain",
    type=DurationType(most_ms=600_000),
    default="0ms",
    help="How long it still forwards requests after it was told to stop.",
)
@click.option(
    "--redis",
    default="",
    metavar="URL",
    help="Of queues and cache: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://.",
)
@click.option(
    "--cache-max-bytes",
    type=click.IntRange(1 << 20, 1 << 40),
    default=64 << 20,
    help="How much of the cache is held in memory here.",
)
@click.option(
    "--cache-durability",
    type=click.Choice(["mirrored", "local", "write_through"]),
    default="mirrored",
    help="Where a value is before its write is acknowledged: in two nodes, in one, in Redis.",
)
@click.option(
    "--cache-durability-of",
    multiple=True,
    metavar="PREFIX=MODE",
    help="The same for keys that begin so; the longest prefix counts. Can be given several times.",
)
@click.option(
    "--redis-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with that URL, for one with a password in it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="The least level that is logged, as JSON lines on stderr.",
)
@click.option("--access-log/--no-access-log", default=False, help="Log each request.")
@click.option("--parent-pid", type=int, hidden=True, help="End at once when this parent ends.")
def node(parent_pid: int | None, **options: Any) -> None:
    """Run one node in this process until SIGTERM or SIGINT.

    Each option can be given by the environment: --data-dir is DISTSYNC_DATA_DIR, and so on. The
    cluster is created by the first of --members, by `distsync up`, or by an operator.
    """
    if parent_pid is not None:
        die_with_parent(parent_pid)
    raise click.exceptions.Exit(_load(options)())


def _load(options: dict[str, Any]) -> Callable[[], int]:
    """Return the call that runs the node; all that can be wrong beforehand is found here."""
    try:
        from distsync_node.errors import StartupError
        from distsync_node.main import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "distsync":
            raise
        raise Failure(
            f"running a node needs more packages: pip install 'distsync[node]' ({error})",
            exit_code=ExitCode.USAGE,
            code="extra_missing",
        ) from None

    def run_or_say_why() -> int:
        try:
            return run(_settings(options))
        except StartupError as error:
            raise Failure(str(error), exit_code=ExitCode.USAGE, code="startup") from None
        except Exception:  # a bug: all of it belongs in the log
            logging.getLogger("distsync").exception("the node failed")
            return ExitCode.FAILED

    return run_or_say_why


def _settings(options: dict[str, Any]) -> Settings:
    from distsync_node.settings import (
        Settings,
        parse_durabilities,
        parse_members,
        read_redis_url,
        read_secret,
    )

    port: int = options["port"]
    return Settings(
        name=options["name"],
        data_dir=options["data_dir"],
        secret=read_secret(options["secret_file"]),
        host=options["host"],
        port=port,
        peer_port=options["peer_port"] or port + 100,
        peer_url=options["peer_url"],
        client_url=options["client_url"],
        members=parse_members(options["members"]),
        bootstrap=options["bootstrap"],
        voters=int(options["voters"]),
        virtual_nodes=options["virtual_nodes"],
        heartbeat_ms=options["heartbeat"],
        election_timeout_ms=options["election_timeout"],
        drain_ms=options["drain"],
        redis_url=read_redis_url(options["redis"], options["redis_file"]),
        cache_max_bytes=options["cache_max_bytes"],
        cache_durability=options["cache_durability"],
        cache_durability_by_prefix=parse_durabilities(options["cache_durability_of"]),
        log_level=options["log_level"],
        access_log=options["access_log"],
    )
