"""A countdown latch: closed until it was counted down `count` times, then open.

What it guarantees:

- `wait()` returns only after `count` different parties have counted down, all within `keep`.
- A count stands for `keep` whatever becomes of the process that made it: it may exit, or crash,
  as soon as `count_down()` has returned. An open latch stays open until `keep` after its first
  count.
- A party counts once. One that was restarted, or got `OutcomeUnknown`, may count down again under
  the same `party` name and is not counted twice.
- More counts than needed change nothing. For another round use another name, or `reset()` when
  nobody is using it.

How: NAME/.latch is a semaphore of `count` permits; a count is a permit with a lease of `keep` that
is neither renewed nor released. Nothing has to stay alive for the latch to stay as it is.
"""

from __future__ import annotations

import contextlib
from typing import Final

from distsync.core import Core
from distsync.durations import Duration, to_milliseconds, to_seconds
from distsync.errors import BadRequest, LockHeld, NotHolder, WaitTimeout
from distsync.identity import new_request_id
from distsync.models import AcquireBody, Grant, GrantBody, LockInfo, Nothing
from distsync.waiting import Wait, until_of, wait_seconds
from distsync.watching import Changes

__all__ = ["Latch"]

_LOOK_EVERY_SECONDS: Final = 2.0


class Latch:
    """A latch; made by `AsyncClient.latch`. One object serves any number of callers."""

    def __init__(self, core: Core, name: str, count: int, *, keep: Duration = 86_400.0) -> None:
        """Users call `AsyncClient.latch` instead."""
        if count < 1:
            raise BadRequest("count: at least 1", field="count")
        self.name = name
        self.count = count
        self._core = core
        self._keep_ms = to_milliseconds(to_seconds(keep, "keep"))
        self._lock_name = f"{name}/.latch"

    async def count_down(self, party: str | None = None) -> None:
        """Count down once.

        Args:
            party: who counts; the same party is counted once. Without it every call counts.

        Raises:
            LimitMismatch: others count to another number.
            Unavailable: not counted.
            OutcomeUnknown: perhaps counted; with a `party`, calling again is safe.
        """
        body = AcquireBody(
            name=self._lock_name,
            owner=f"party/{party}" if party is not None else self._core.identity.new_owner(),
            request_id=new_request_id(),
            mode="shared",
            limit=self.count,
            ttl_ms=self._keep_ms,
        )
        # LockHeld: this party was counted before, or the latch is open. The call goes past the
        # client's care for abandoned grants: in doubt, this one shall stay.
        with contextlib.suppress(LockHeld):
            await self._core.transport.post("/lock/acquire", body, Grant)

    async def wait(self, wait: Wait = None) -> None:
        """Wait until the latch is open.

        Raises:
            WaitTimeout: `wait` passed first.
            Unavailable: no answer within the client's timeout.
        """
        until = until_of(self._core, wait_seconds(wait))
        clock = self._core.clock
        async with Changes(self._core, self._lock_name) as changes:
            while (missing := await self.missing()) > 0:
                now = clock.now()
                if until is not None and now >= until:
                    raise WaitTimeout(f"{self.name}: {missing} counts missing", name=self.name)
                look_at = now + _LOOK_EVERY_SECONDS
                await changes.wait(look_at if until is None else min(look_at, until))

    async def missing(self) -> int:
        """Return how many counts are missing; 0 when it is open."""
        state = await self._core.lock_info(self._lock_name)
        return max(0, self.count - (state.holder_count or len(state.holders)))

    async def is_open(self) -> bool:
        """Whether it is open."""
        return await self.missing() == 0

    async def reset(self) -> None:
        """Take back all counts. Not to be called while others count or wait."""
        while (state := await self._core.lock_info(self._lock_name)).holders:
            await self._release_all(state)

    async def _release_all(self, state: LockInfo) -> None:
        for holder in state.holders:
            body = GrantBody(
                name=self._lock_name,
                owner=holder.owner,
                token=holder.token,
                request_id=new_request_id(),
            )
            with contextlib.suppress(NotHolder):  # it has ended meanwhile
                await self._core.transport.post("/lock/release", body, Nothing)
