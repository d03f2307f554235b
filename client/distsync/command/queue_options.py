"""What the commands of `distsync queue` have in common."""

from __future__ import annotations

from typing import Final

import click

from distsync.command.completion import complete_queue_name
from distsync.command.durations import DurationType

MAX_PRIORITY: Final = 9

DELAY: Final = DurationType(most_ms=30 * 86_400_000)
TTL: Final = DurationType(most_ms=365 * 86_400_000)

queue_argument = click.argument("name", shell_complete=complete_queue_name)
priority_option = click.option(
    "--priority",
    type=click.IntRange(0, MAX_PRIORITY),
    default=0,
    show_default=True,
    help="0 to 9; higher ones go first.",
)
group_option = click.option(
    "--group", help="Messages of a group are delivered one at a time, in order."
)
