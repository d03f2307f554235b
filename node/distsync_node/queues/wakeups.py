"""Long polls that are parked on a node: who claims next.

Pure: every call takes the time as a stamp and returns effects, which the shell carries out in their
order. A parked poll is called a waiter. For `Claim` the shell runs pop.lua for that waiter, with
its own request id, and reports with `claimed`; so a message is only ever claimed for someone who
waits for it, and nothing is held back for a waiter who has gone.

Promises:

 1. Of the waiters of a queue that are not claiming just now, the first to come is the first to
    claim. One that found nothing keeps its place.
 2. No wake-up is lost. A signal that arrives while claims are under way, whose scripts may have run
    before the message was there, makes those that come back empty claim again.
 3. A full claim wakes the next waiter, for there may be more; one that is not full was the last of
    the queue. So a signal needs to wake only as many waiters as messages became ready.
 4. A queue with waiters is looked at once a second, by the first of them, whatever signals came: a
    message pushed through a node that knows nothing of this one waits no longer than that. It is
    looked at sooner when Redis, or `expect`, said that a delay or another's claim ends sooner.
 5. A waiter ends exactly once: answered (`claimed` with messages), `Expire`, `Move`, or `leave`.
 6. Where a queue has another owner, as on a new epoch, its waiters are moved, to be parked there;
    one whose claim is under way when that comes back empty.

A waiter who leaves or is moved while its claim is under way is forgotten here; `claimed` then
returns `GiveBack`, and the shell unclaims that attempt, which spends no delivery.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NewType, TypeAlias

from distsync_node.errors import InvariantViolation, LimitReached

WaiterId = NewType("WaiterId", int)

RECHECK_MS: Final = 1_000
MAX_WAITERS: Final = 100_000
MAX_WAITERS_PER_QUEUE: Final = 10_000
MIN_HEAP: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Pop for this waiter now, and report with `claimed`."""

    waiter: WaiterId
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expire:
    """The waiter's time is over: answer it with nothing."""

    waiter: WaiterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Park the waiter again where its queue is owned now."""

    waiter: WaiterId
    queue: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveBack:
    """The waiter has gone: return what was claimed for it."""

    waiter: WaiterId


Effect: TypeAlias = Claim | Expire | Move | GiveBack


@dataclass(slots=True, kw_only=True)
class _Waiter:
    id: WaiterId
    queue: str
    wanted: int
    deadline_ms: int
    seen_signal: int = -1  # the signal that its claim under way answers to; -1 = it is idle
    has_left: bool = False
    must_move: bool = False

    @property
    def is_claiming(self) -> bool:
        return self.seen_signal >= 0


@dataclass(slots=True)
class _Queue:
    signal: int = 0  # counts signals
    waiting: int = 0  # waiters that have not ended
    idle: list[WaiterId] = field(default_factory=list)  # a heap; entries of the gone are skipped
    check_at_ms: int = 0


class Wakeups:
    """The waiters of a node."""

    def __init__(self) -> None:
        self._waiters: dict[WaiterId, _Waiter] = {}
        self._queues: dict[str, _Queue] = {}
        self._deadlines: list[tuple[int, WaiterId]] = []
        self._checks: list[tuple[int, str]] = []
        self._last_id = 0

    def __len__(self) -> int:
        return sum(queue.waiting for queue in self._queues.values())

    def queues(self) -> Iterable[str]:
        """Return the queues that have waiters."""
        return self._queues.keys()

    def knows(self, waiter_id: WaiterId) -> bool:
        """Return whether the waiter still waits, or has a claim under way."""
        return waiter_id in self._waiters

    # Events.

    def park(
        self, queue: str, *, wanted: int, deadline_ms: int, now_ms: int
    ) -> tuple[WaiterId, list[Effect]]:
        """Enter a poll that is willing to wait, before anything was popped for it.

        The first in line claims at once; that is the new waiter if nobody waits before it.

        Raises:
            LimitReached: too many wait.
        """
        state = self._queues.get(queue)
        if len(self._waiters) >= MAX_WAITERS:
            raise LimitReached("too many long polls are parked on this node", limit="waiters")
        if state is not None and state.waiting >= MAX_WAITERS_PER_QUEUE:
            raise LimitReached(f"too many wait for queue {queue!r}", limit="waiters")
        if state is None:
            state = self._queues[queue] = _Queue()
        self._last_id += 1
        waiter = _Waiter(
            id=WaiterId(self._last_id), queue=queue, wanted=wanted, deadline_ms=deadline_ms
        )
        self._waiters[waiter.id] = waiter
        state.waiting += 1
        heapq.heappush(state.idle, waiter.id)
        heapq.heappush(self._deadlines, (deadline_ms, waiter.id))
        self._forget_the_gone(state)
        self._plan_check(queue, state, now_ms, None)
        return waiter.id, self._wake(queue, state, 1)

    def leave(self, waiter_id: WaiterId) -> None:
        """The waiter's client has gone. Nothing happens if it has ended already."""
        waiter = self._waiters.get(waiter_id)
        if waiter is None or waiter.has_left:
            return
        self._end(waiter)

    def signal(self, queue: str, ready: int) -> list[Effect]:
        """`ready` messages of the queue can be claimed that could not before."""
        state = self._queues.get(queue)
        if state is None or ready <= 0:
            return []
        state.signal += 1
        return self._wake(queue, state, ready)

    def expect(self, queue: str, delay_ms: int, now_ms: int) -> None:
        """A message of the queue can be claimed after this delay."""
        state = self._queues.get(queue)
        if state is not None:
            self._plan_check(queue, state, now_ms, delay_ms)

    def claimed(
        self, waiter_id: WaiterId, *, got: int, more: bool, next_ms: int | None, now_ms: int
    ) -> list[Effect]:
        """The claim of a waiter came back with `got` messages. With any, the waiter is answered.

        `more` and `next_ms` are what the pop said. A pop that failed counts as one with nothing.
        """
        waiter = self._waiters.get(waiter_id)
        if waiter is None or not waiter.is_claiming:
            raise InvariantViolation(f"waiter {waiter_id} has no claim under way")
        seen_signal, waiter.seen_signal = waiter.seen_signal, -1
        state = self._queues.get(waiter.queue)
        if waiter.has_left:
            del self._waiters[waiter_id]
            effects: list[Effect] = [GiveBack(waiter=waiter_id)] if got else []
            if got and state is not None:
                effects += self._wake(waiter.queue, state, 1)  # they come back for the next one
            return effects
        if state is None:
            raise InvariantViolation(f"waiter {waiter_id} waits for a queue nobody waits for")
        if got:
            self._end(waiter)
            return self._wake(waiter.queue, state, 1) if got >= waiter.wanted or more else []
        if waiter.must_move:
            self._end(waiter)
            return [Move(waiter=waiter_id, queue=waiter.queue)]
        if waiter.deadline_ms <= now_ms:
            self._end(waiter)
            return [Expire(waiter=waiter_id)]
        heapq.heappush(state.idle, waiter_id)
        if more or state.signal != seen_signal:
            return self._wake(waiter.queue, state, 1)
        self._plan_check(waiter.queue, state, now_ms, next_ms)
        return []

    def tick(self, now_ms: int) -> list[Effect]:
        """Time has come to `now_ms`: deadlines and checks. See `next_tick_ms`."""
        effects: list[Effect] = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            _, waiter_id = heapq.heappop(self._deadlines)
            waiter = self._waiters.get(waiter_id)
            # One whose claim is under way gets what that brings.
            if waiter is not None and not waiter.has_left and not waiter.is_claiming:
                self._end(waiter)
                effects.append(Expire(waiter=waiter_id))
        while self._checks and self._checks[0][0] <= now_ms:
            at_ms, queue = heapq.heappop(self._checks)
            state = self._queues.get(queue)
            if state is not None and state.check_at_ms == at_ms:
                state.check_at_ms = 0
                effects += self._wake(queue, state, 1)
                self._plan_check(queue, state, now_ms, None)
        return effects

    def move(self, is_to_move: Callable[[str], bool]) -> list[Effect]:
        """Whoever waits for such a queue is to be parked again, in the order of now."""
        effects: list[Effect] = []
        for waiter_id in sorted(self._waiters):
            waiter = self._waiters[waiter_id]
            if waiter.has_left or not is_to_move(waiter.queue):
                continue
            if waiter.is_claiming:
                waiter.must_move = True
            else:
                self._end(waiter)
                effects.append(Move(waiter=waiter_id, queue=waiter.queue))
        return effects

    def next_tick_ms(self) -> int | None:
        """Return the time at which `tick` has something to do; it may turn out to be nothing."""
        times = [heap[0][0] for heap in (self._deadlines, self._checks) if heap]
        return min(times, default=None)

    # Inside.

    def _wake(self, queue: str, state: _Queue, count: int) -> list[Effect]:
        """Have the first `count` idle waiters claim."""
        effects: list[Effect] = []
        while state.idle and len(effects) < count:
            waiter = self._waiters.get(heapq.heappop(state.idle))
            if waiter is None or waiter.has_left or waiter.is_claiming:
                continue
            waiter.seen_signal = state.signal
            effects.append(Claim(waiter=waiter.id, queue=queue))
        return effects

    def _forget_the_gone(self, state: _Queue) -> None:
        """Keep the heaps within twice what they need, however quickly waiters come and go."""
        if len(state.idle) > 2 * state.waiting + MIN_HEAP:
            state.idle = [one for one in state.idle if one in self._waiters]
            heapq.heapify(state.idle)
        if len(self._deadlines) > 2 * len(self._waiters) + MIN_HEAP:
            self._deadlines = [one for one in self._deadlines if one[1] in self._waiters]
            heapq.heapify(self._deadlines)

    def _end(self, waiter: _Waiter) -> None:
        """The waiter is no more. If its claim is under way, it is kept to be told about that."""
        waiter.has_left = True
        if not waiter.is_claiming:
            del self._waiters[waiter.id]
        state = self._queues[waiter.queue]
        state.waiting -= 1
        if not state.waiting:
            del self._queues[waiter.queue]

    def _plan_check(self, queue: str, state: _Queue, now_ms: int, next_ms: int | None) -> None:
        wait_ms = RECHECK_MS if next_ms is None else min(RECHECK_MS, max(1, next_ms))
        at_ms = now_ms + wait_ms
        if not state.check_at_ms or at_ms < state.check_at_ms:
            state.check_at_ms = at_ms
            heapq.heappush(self._checks, (at_ms, queue))
