"""Fencing tokens that are newer than any seen, looked up for queues and cache."""

from __future__ import annotations

from distsync_node.errors import BadRequest, Fenced
from distsync_node.locks.commands import FencingToken
from distsync_node.locks.fencing import FenceVerdict, check_fence
from distsync_node.services.interface import Node


async def verify_fence(node: Node, lock: str, token: int, *, timeout_ms: int) -> None:
    """Return if the token is the lock's current exclusive grant by a linearizable read.

    Raises:
        Fenced: it is not.
        BadRequest: it is of a shared grant.
        NoLeader, and others of `Node.read_barrier`.
    """
    await node.read_barrier(timeout_ms=timeout_ms)
    match check_fence(node.machine, lock, FencingToken(token)):
        case FenceVerdict.SHARED:
            raise BadRequest(
                "fence.token: is of a shared grant, which cannot fence", field="fence.token"
            )
        case FenceVerdict.STALE:
            raise Fenced(f"token {token} is not the current grant of lock {lock!r}")
