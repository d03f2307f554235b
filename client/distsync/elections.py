"""Leader election: candidates of one name stand for one exclusive lock.

What it guarantees: by their own clocks at most one candidate is the leader at a time, because a
leader stops being one, and its body is cancelled, before the cluster may elect another. Clocks
cannot stop a write that is already on its way, so what a leader writes carries `token`, which rises
with every term. Candidates are elected in the order in which they began to stand.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from distsync.clock import sleep_until
from distsync.core import Core
from distsync.durations import Duration
from distsync.errors import LockLost, OutcomeUnknown, Unavailable
from distsync.locks import Lock, OnLost
from distsync.models import LockInfo
from distsync.owners import OneOwner
from distsync.waiting import Wait
from distsync.watching import watch_lock

__all__ = ["Election", "Leader"]

_log = logging.getLogger("distsync")

T = TypeVar("T")

_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """Who leads: the candidate's name, and the fencing token of its term."""

    candidate: str
    token: int


class Election:
    """One candidate; made by `AsyncClient.election`.

        election = client.election("scheduler")
        async with election:            # stands, and is the leader in the body
            await schedule(fence=election.token)

    `run` does this again and again. A candidate serves one term at a time.
    """

    def __init__(
        self,
        core: Core,
        name: str,
        *,
        ttl: Duration = 10.0,
        candidate: str | None = None,
        on_elected: Callable[[Election], object] | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        """Users call `AsyncClient.election` instead."""
        self.name = name
        self.candidate = candidate or core.identity.client_id
        self._core = core
        self._on_elected = on_elected
        # An owner of its own: the election is one for all tasks that use it, and a candidate that
        # was started again must not be taken for its former self.
        self._lock = Lock(
            core,
            name,
            ttl=ttl,
            owner=OneOwner(core.identity, prefix=f"{self.candidate}#"),
            on_lost=on_lost,
        )

    @property
    def is_leader(self) -> bool:
        """Whether this candidate leads, by the clock of this moment; from any thread."""
        return self._lock.held

    @property
    def token(self) -> int:
        """The fencing token of the term; the last one's after it ended."""
        return self._lock.token

    def expires_in(self) -> float:
        """Return for how many seconds it leads without another renewal; 0 when it does not."""
        return self._lock.expires_in()

    def check(self) -> None:
        """Raise if this candidate does not lead (any more); from any thread.

        Raises:
            LockLost: the term ended against its will.
            NotHolder: it resigned, or was never elected.
        """
        self._lock.check()

    async def campaign(self, wait: Wait = None) -> None:
        """Stand until elected. Raises as `Lock.acquire`."""
        await self._lock.acquire(wait)
        self._notify_elected()

    async def resign(self) -> None:
        """Step down; the next candidate is elected at once. Raises as `Lock.release`."""
        await self._lock.release()

    @property
    def acquired(self) -> bool:
        """Whether it was elected and has not resigned; a term that was lost counts."""
        return self._lock.acquired

    async def give_up(self) -> None:
        """Resign if it leads, after an interrupted campaign; never raises."""
        await self._lock.give_up()

    async def leader(self) -> Leader | None:
        """Return who leads; linearizable."""
        return _leader_of(await self._core.lock_info(self.name))

    async def observe(self) -> AsyncGenerator[Leader | None, None]:
        """Yield who leads now and after each change; a term in between may be missed."""
        last: Leader | None = None
        is_first = True
        async for state in watch_lock(self._core, self.name):
            leader = _leader_of(state)
            if is_first or leader != last:
                is_first, last = False, leader
                yield leader

    async def run(self, lead: Callable[[Election], Awaitable[T]]) -> T:
        """Stand for election and call `lead` as the leader, until it returns.

        When leadership is lost, `lead` is cancelled and the candidate stands again; also when the
        cluster cannot be reached. When `lead` returns or raises, the candidate resigns.
        """
        while True:
            led = False
            try:
                async with self:
                    led = True
                    return await lead(self)
            except LockLost as error:
                if error.fields.get("name") != self.name:
                    raise
                _log.warning("no longer the leader: %s", error)
            except (Unavailable, OutcomeUnknown) as error:
                if led:
                    raise
                _log.warning("cannot stand for %s yet: %s", self.name, error)
            pause = _PAUSE_SECONDS * (0.5 + random.random())
            await sleep_until(self._core.clock, self._core.clock.now() + pause)

    async def __aenter__(self) -> Election:
        await self._lock.__aenter__()
        self._notify_elected()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._lock.__aexit__(kind, error, traceback)

    def _notify_elected(self) -> None:
        self._core.notify(self._on_elected, self, name="on_elected")


def _leader_of(state: LockInfo) -> Leader | None:
    if not state.holders:
        return None
    holder = state.holders[0]
    return Leader(candidate=holder.owner.rpartition("#")[0] or holder.owner, token=holder.token)
