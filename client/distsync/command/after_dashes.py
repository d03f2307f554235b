"""Subcommands that run a command of the user's, written after `--`."""

from __future__ import annotations

import os
import shutil

import click

from distsync.command.failures import ExitCode, Failure


class AfterDashes(click.Command):
    """Takes what follows `--` as it is; says so when an option of the command came without it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and explain an option that is not ours."""
        separated = "--" in args
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if separated:
                raise
            message = f"{error.format_message().rstrip('.')}; write -- before the command"
            raise click.UsageError(message, ctx) from None


def check_command(program: str) -> None:
    """Find out before anything is taken for it whether there is such a command at all.

    Raises:
        Failure: there is none, or it cannot be executed.
    """
    if shutil.which(program) is None:
        found = os.path.exists(program) if os.sep in program else False
        raise Failure(
            f"{program}: {'not executable' if found else 'command not found'}",
            exit_code=ExitCode.NOT_EXECUTABLE if found else ExitCode.COMMAND_NOT_FOUND,
        )
