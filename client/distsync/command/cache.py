"""`distsync cache`: cached values from a shell."""

from __future__ import annotations

import click

from distsync.command.cache_nodes import lines, stats
from distsync.command.cache_values import delete, get, invalidate_tag, put


@click.group()
def cache() -> None:
    """Read, write and remove cached values, and look at what the nodes hold."""


for _command in (get, put, delete, invalidate_tag, stats, lines):
    cache.add_command(_command)
