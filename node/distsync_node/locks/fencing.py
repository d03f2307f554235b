"""The check behind a fenced write: does this token hold that lock, alone, now?

A writer sends the token of its exclusive grant along. Whoever keeps the data refuses a token older
than the newest it has seen, and asks here, on a state read linearizably, before it accepts a
newer one. A shared token protects nothing against the other holders, so it is not a fence.
"""

from __future__ import annotations

from enum import IntEnum

from distsync_node.locks.commands import FencingToken, LockMode
from distsync_node.locks.machine import LockMachine


class FenceVerdict(IntEnum):
    """What a token is worth for a lock."""

    CURRENT = 0  # the lock's exclusive grant: the write may proceed
    STALE = 1  # not a grant of that lock, or no longer
    SHARED = 2  # a shared grant, which cannot fence


def check_fence(machine: LockMachine, name: str, token: FencingToken) -> FenceVerdict:
    """Return what `token` is worth as a fence under the lock `name`."""
    match machine.mode_of_token(name, token):
        case LockMode.EXCLUSIVE:
            return FenceVerdict.CURRENT
        case LockMode.SHARED:
            return FenceVerdict.SHARED
        case None:
            return FenceVerdict.STALE
