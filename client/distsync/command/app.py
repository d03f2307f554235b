"""The root of the command and the one place where it ends: every error becomes one line."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from importlib.metadata import version
from typing import NoReturn

import click

from distsync.command.failures import ExitCode, Failure
from distsync.command.options import Options, output_option, url_option
from distsync.command.output import printable
from distsync.errors import DistSyncError

# Subcommands are imported when they are used: completion and --help stay quick.
_SUBCOMMANDS = {
    "cache": ("distsync.command.cache:cache", "Read and write cached values, look at the cache."),
    "completion": ("distsync.command.completion:completion", "Print a shell completion script."),
    "lock": ("distsync.command.locks:lock", "Take, release, list, watch and run under locks."),
    "member": ("distsync.command.members:member", "Change who is in the cluster."),
    "node": ("distsync.command.node:node", "Run one node."),
    "queue": ("distsync.command.queues:queue", "Push, claim and look at messages, and work."),
    "ring": ("distsync.command.ring:ring", "Show who owns what."),
    "status": ("distsync.command.status:status", "Show the nodes and who leads."),
    "up": ("distsync.command.up:up", "Run a cluster on this machine."),
}


class _LazyGroup(click.Group):
    def list_commands(self, _ctx: click.Context) -> list[str]:
        return sorted(_SUBCOMMANDS)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUBCOMMANDS:
            return None
        module_name, _, attribute = _SUBCOMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module_name), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, _SUBCOMMANDS[name][1]) for name in sorted(_SUBCOMMANDS)])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("distsync"), message="%(prog)s %(version)s")
@url_option(envvar="DISTSYNC_URL")
@output_option(envvar="DISTSYNC_OUTPUT")
@click.pass_context
def app(ctx: click.Context) -> None:
    """Run a DistSync cluster, look at it, and use its locks, queues and cache."""
    ctx.ensure_object(Options)


def main() -> NoReturn:
    """Run the command with the arguments of this process and exit."""
    try:
        ended = app.main(prog_name="distsync", standalone_mode=False)
        sys.exit(ended if isinstance(ended, int) else ExitCode.OK)
    except Failure as failure:
        _exit(failure.message, failure.exit_code)
    except DistSyncError as error:
        _exit(f"{error} ({error.code})", ExitCode.FAILED)
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a subcommand
        click.echo(error.message, err=True)
        sys.exit(ExitCode.USAGE)
    except click.UsageError as error:
        _exit(_usage_line(error), ExitCode.USAGE)
    except click.ClickException as error:
        _exit(error.format_message(), ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(ExitCode.SIGNALLED + signal.SIGINT)
    except BrokenPipeError:
        # The reader has gone (`| head`). Nothing more can be said, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(ExitCode.SIGNALLED + signal.SIGPIPE)
    except Exception as error:
        if os.environ.get("DISTSYNC_TRACEBACK"):
            raise
        what = f"{type(error).__name__}: {error}"
        _exit(f"{what} (unexpected; DISTSYNC_TRACEBACK=1 shows where)", ExitCode.FAILED)


def _usage_line(error: click.UsageError) -> str:
    message = error.format_message().rstrip(".")
    path = error.ctx.command_path if error.ctx else "distsync"
    return f"{message} (see {path} --help)"


def _exit(message: str, exit_code: int) -> NoReturn:
    click.echo(f"distsync: {printable(' '.join(message.split()))}", err=True)
    sys.exit(int(exit_code))
