"""`distsync queue`: queues from a shell."""

from __future__ import annotations

import click

from distsync.command.queue_admin import (
    config,
    list_queues,
    pause,
    purge,
    redrive,
    resume,
    stats,
)
from distsync.command.queue_messages import ack, cancel, get, list_messages, nack, peek, pop
from distsync.command.queue_push import push
from distsync.command.queue_schedules import schedule, schedules, unschedule
from distsync.command.queue_work import work

_COMMANDS = (
    push,
    pop,
    ack,
    nack,
    work,
    peek,
    get,
    cancel,
    list_messages,
    stats,
    list_queues,
    config,
    pause,
    resume,
    purge,
    redrive,
    schedule,
    schedules,
    unschedule,
)


@click.group()
def queue() -> None:
    """Push, claim, settle and look at messages, configure queues, and run commands on messages."""


for _command in _COMMANDS:
    queue.add_command(_command)
