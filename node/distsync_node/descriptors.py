"""The table of open files: connections, the log and all else of the process share it.

A node whose clients fill it could begin no segment of its log, keep no connection to the others and
tell nobody. The kernel gives a new file the lowest number that is free, so the number of a
connection that was just accepted says how full the table is, whoever filled it:

    below 1/2    connections of clients: what they ask for may need another one to another node
    below 3/4    connections that bring a probe: a crowd shall not have the node restarted
    below 7/8    calls of other nodes, which wait as long as those nodes' clients do
    the rest     messages of consensus and of the cache, Redis, segments of the log, snapshots
"""

from __future__ import annotations

import asyncio
import contextlib
import resource


def raise_limit() -> None:
    """Let this process have as many open files as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # "unlimited" may be more than there can be
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def has_room_for_client(transport: asyncio.BaseTransport) -> bool:
    """Whether a client's connection that was just accepted may stay."""
    return 2 * _number(transport) < _limit()


def has_room_for_probe(transport: asyncio.BaseTransport) -> bool:
    """Whether a client's connection that was just accepted may still bring a probe."""
    return 4 * _number(transport) < 3 * _limit()


def has_room_for_call(transport: asyncio.BaseTransport) -> bool:
    """Whether another node's connection that was just accepted may carry calls."""
    return 8 * _number(transport) < 7 * _limit()


def _limit() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if soft == resource.RLIM_INFINITY else soft


def _number(transport: asyncio.BaseTransport) -> int:
    connection = transport.get_extra_info("socket")
    return -1 if connection is None else int(connection.fileno())
