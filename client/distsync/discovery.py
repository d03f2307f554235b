"""Learning the other nodes of the cluster in the background, while calls already run.

No call waits for this. A look asks the configured URLs for their status, then lets every URL that
they tell of prove itself (see `nodes`). It happens at the first call, when a leader is announced
that cannot be asked directly, after failures, and once a minute while calls are made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from distsync.background import Background
from distsync.clock import Clock
from distsync.models import ClusterStatus
from distsync.nodes import Endpoint, NodeSet

__all__ = ["Discovery"]

_ROUTINE_SECONDS = 60.0
_LEAST_GAP_SECONDS = 1.0
_LONGEST_GAP_SECONDS = 30.0


class Discovery:
    """Keeps a `NodeSet` up to date."""

    def __init__(
        self,
        nodes: NodeSet,
        clock: Clock,
        background: Background,
        ask: Callable[[Endpoint], Awaitable[ClusterStatus | None]],
    ) -> None:
        """`ask` fetches the status at an endpoint; None when there is no usable answer."""
        self._nodes = nodes
        self._clock = clock
        self._background = background
        self._ask = ask
        self._looking = False
        self._gap = _LEAST_GAP_SECONDS
        self._not_before = float("-inf")
        self._routine_at = float("-inf")

    def called(self, now: float) -> None:
        """A call is being made: look around if the last look is old."""
        if now >= self._routine_at:
            self.poke(now)

    def poke(self, now: float) -> None:
        """Something changed: look around, once a second at most, rarer if that did not help."""
        if self._looking or now < self._not_before:
            return
        self._looking = True
        self._background.spawn(self._look(), name="distsync-discovery")

    async def _look(self) -> None:
        try:
            await self._ask_all(e for e in self._nodes.endpoints if e.configured)
            await self._ask_all(self._nodes.unproven(self._clock.now()))
        finally:
            now = self._clock.now()
            helped = self._nodes.leader_is_reachable or self._nodes.leader_url is None
            self._gap = _LEAST_GAP_SECONDS if helped else min(self._gap * 2, _LONGEST_GAP_SECONDS)
            self._not_before = now + self._gap
            self._routine_at = now + _ROUTINE_SECONDS
            self._looking = False

    async def _ask_all(self, endpoints: Iterable[Endpoint]) -> None:
        asked = list(endpoints)
        answers = await asyncio.gather(*(self._ask(endpoint) for endpoint in asked))
        now = self._clock.now()
        for endpoint, status in zip(asked, answers, strict=True):
            if status is not None:
                self._nodes.note_status(endpoint, status, now)
            elif not endpoint.usable:
                self._nodes.failed(endpoint, now)
