"""Noticing that a node has died, or lost its cluster, while it owes us an answer.

A request that waits for a lock may rightly stay without an answer for minutes, and a slow cluster
may take seconds. If the node is stopped or cut off meanwhile, no error ever comes. So once a
request has been out for a second, one probe per node asks for a sign of life every two. A node that
gives none, or twice says that it knows no leader, has its requests cut off, and their callers
repeat them elsewhere; under the same request id that keeps the place in the queue. A request that
needs no leader, as those of message queues, stays as long as its node lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from distsync.background import Background
from distsync.clock import Clock, Timer, sleep_until
from distsync.models import ClusterStatus
from distsync.nodes import Endpoint

__all__ = ["Cut", "Lifelines"]

Cut: TypeAlias = Callable[[], object]

_PATIENCE_SECONDS = 1.0
_PROBE_EVERY_SECONDS = 2.0
_LEADERLESS_PROBES = 2


class _Line:
    """The requests out at one node, oldest first, and what the probes said."""

    __slots__ = ("alive_at", "cuts", "good_at", "leaderless", "needs_none", "probing", "timer")

    def __init__(self) -> None:
        self.cuts: dict[Cut, float] = {}
        self.needs_none: set[Cut] = set()  # no leader, that is
        self.alive_at = float("-inf")
        self.good_at = float("-inf")
        self.leaderless = 0
        self.probing: asyncio.Task[None] | None = None
        self.timer: Timer | None = None

    def oldest(self) -> float:
        """Return since when the oldest request is out."""
        return next(iter(self.cuts.values()), float("inf"))


class Lifelines:
    """One lifeline per node that owes an answer."""

    def __init__(
        self,
        clock: Clock,
        background: Background,
        ask: Callable[[Endpoint], Awaitable[ClusterStatus | None]],
    ) -> None:
        """`ask` fetches a node's status in bounded time; None when it does not answer."""
        self._clock = clock
        self._background = background
        self._ask = ask
        self._lines: dict[Endpoint, _Line] = {}

    def attach(
        self, endpoint: Endpoint, cut: Cut, now: float, *, needs_leader: bool = True
    ) -> None:
        """A request is out at this node from now on; `cut` ends it."""
        line = self._lines.get(endpoint)
        if line is None:
            line = self._lines[endpoint] = _Line()
        line.cuts[cut] = now
        if not needs_leader:
            line.needs_none.add(cut)
        if line.timer is None and line.probing is None:
            self._look_later(endpoint, line, now + _PATIENCE_SECONDS)

    def detach(self, endpoint: Endpoint, cut: Cut) -> float:
        """The request has ended; returns when its node was last known to be good for it."""
        line = self._lines.get(endpoint)
        if line is None:
            return float("-inf")
        line.cuts.pop(cut, None)
        if cut in line.needs_none:
            line.needs_none.discard(cut)
            return line.alive_at
        return line.good_at

    def _look_later(self, endpoint: Endpoint, line: _Line, when: float) -> None:
        line.timer = self._clock.call_at(when, lambda: self._look(endpoint, line))

    def _look(self, endpoint: Endpoint, line: _Line) -> None:
        line.timer = None
        if not line.cuts:
            self._lines.pop(endpoint, None)
        elif line.oldest() + _PATIENCE_SECONDS <= self._clock.now():
            name = f"distsync-lifeline {endpoint.url}"
            line.probing = self._background.spawn(self._probe(endpoint, line), name=name)
        else:
            self._look_later(endpoint, line, line.oldest() + _PATIENCE_SECONDS)

    async def _probe(self, endpoint: Endpoint, line: _Line) -> None:
        try:
            while line.oldest() + _PATIENCE_SECONDS <= self._clock.now():
                asked_at = self._clock.now()
                status = await self._ask(endpoint)
                if status is not None:
                    line.alive_at = asked_at
                if status is not None and status.leader is not None:
                    line.good_at = asked_at
                    line.leaderless = 0
                elif status is None:
                    line.leaderless = 0
                    self._cut_off(line, asked_at, spared=set())
                elif line.leaderless + 1 >= _LEADERLESS_PROBES:
                    line.leaderless = 0
                    self._cut_off(line, asked_at, spared=line.needs_none)
                else:
                    line.leaderless += 1
                await sleep_until(self._clock, asked_at + _PROBE_EVERY_SECONDS)
        finally:
            line.probing = None
            if line.cuts:
                self._look_later(endpoint, line, line.oldest() + _PATIENCE_SECONDS)
            elif self._lines.get(endpoint) is line:
                del self._lines[endpoint]

    def _cut_off(self, line: _Line, asked_at: float, *, spared: set[Cut]) -> None:
        old = [cut for cut, since in line.cuts.items() if since <= asked_at]
        for cut in old:
            if cut not in spared:
                del line.cuts[cut]
                cut()
