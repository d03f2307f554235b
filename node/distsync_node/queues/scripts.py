"""The Lua scripts of queues: `redis_link.scripts` says how one is made, `model` what keys are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from distsync_node.redis_link.scripts import Script, SourceReader, assemble_all, reader_of

SCRIPT_NAMES: Final = (
    "push",
    "pop",
    "ack",
    "nack",
    "extend",
    "unclaim",
    "sweep",
    "get",
    "peek",
    "list",
    "cancel",
    "configure",
    "stats",
    "purge",
    "redrive",
    "schedule",
    "unschedule",
    "schedules",
    "reschedule",
)

read_source: Final = reader_of("distsync_node.queues")


def load_scripts(read: SourceReader = read_source) -> Mapping[str, Script]:
    """Return all scripts by name."""
    return assemble_all(SCRIPT_NAMES, read)
