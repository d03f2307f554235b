"""Get-or-compute: one client computes, the others wait; whoever gives up or dies is replaced.

The lease to compute is the cluster's. A value is stored under it or not at all, so that one who was
replaced, or whose key was written meanwhile, does not put an old value in the place of a newer one.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from distsync.cache_calls import CacheCalls, Terms, entry_of
from distsync.cache_models import CacheEntry, ComputeAnswer
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import (
    BadRequest,
    ComputeLost,
    DistSyncError,
    LineLost,
    VersionMismatch,
)
from distsync.transport import Repeat
from distsync.values import Payload, as_read
from distsync.waiting import Wait, in_pieces, until_of, wait_seconds

__all__ = ["Computing", "Lease"]

_log = logging.getLogger("distsync")


class Lease(NamedTuple):
    """The right to compute the value of a key."""

    key: str
    token: str


class Computing:
    """The steps of `Cache.compute`."""

    def __init__(self, calls: CacheCalls) -> None:
        self._calls = calls

    async def begin(
        self, key: str, wait: Wait, lease: Duration, tags: tuple[str, ...]
    ) -> CacheEntry | Lease:
        """Return a value, or the lease to compute it from what has these tags.

        Raises:
            ComputeTimeout: another client was still computing after `wait`.
        """
        lease_ms = to_milliseconds(to_seconds(lease, "lease"))
        until = until_of(self._calls.core, wait_seconds(wait))
        try:
            entry = await self._calls.get(key)
        except LineLost:
            # What is computed can be computed anew.
            await self._calls.delete(key, Terms(), Repeat.IDEMPOTENT)
        else:
            if entry.found:
                return entry

        async def ask(seconds: float) -> ComputeAnswer:
            wait_ms = to_milliseconds(seconds)
            return (await self._calls.begin_compute(key, wait_ms, lease_ms, tags)).value

        answer = await in_pieces(self._calls.core, until, ask)
        return entry_of(answer) if answer.status == "value" else Lease(key, answer.token)

    async def finish(self, lease: Lease, payload: Payload, terms: Terms) -> Any:
        """Store what was computed, if that is still wanted; returns it as everybody reads it.

        Raises:
            BadRequest: the value, or what it is stored with, is out of range.
        """
        under = Terms(ttl_ms=terms.ttl_ms, tags=terms.tags, compute_token=lease.token)
        try:
            await self._calls.put(lease.key, payload, under)
        except (ComputeLost, VersionMismatch) as error:
            _log.warning("%s: computed and not stored: %s", lease.key, error)
        except BadRequest:
            await self.give_up(lease)
            raise
        except DistSyncError as error:
            await self.give_up(lease)
            _log.warning("%s: computed and not stored, as far as is known: %s", lease.key, error)
        except BaseException:
            await self.give_up(lease)
            raise
        return as_read(payload)

    async def give_up(self, lease: Lease) -> None:
        """Let another client compute at once; returns before it is told."""
        self._calls.core.ghosts.run(self._give_up(lease), name="distsync-give-up-compute")

    async def _give_up(self, lease: Lease) -> None:
        try:
            await self._calls.give_up_compute(lease.key, lease.token)
        except DistSyncError as error:
            _log.warning("%s: the lease to compute it will end by itself: %s", lease.key, error)
