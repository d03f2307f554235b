"""The queues of a node as its endpoints use them: at their owner, or here.

Guarantees:

- Any node takes any call. Pushes and pops go to the node that owns the queue by the ring, where
  long polls wait; when that cannot be reached, the script runs here, under the same request id, so
  nothing happens twice. What else makes messages claimable runs here and is signalled to the owner.
- A long poll is woken at once by what makes messages claimable, whichever node it waits and
  whichever that happens at, as long as the owner is up; otherwise within a second (`wakeups`).
  On a new epoch it moves to the new owner, and back to an owner that was not to be reached.
- Messages are claimed for a poll only while it waits. If its client goes away before it is
  answered, that attempt is unclaimed: the messages return at once and no delivery is spent.
- A poll that waits while Redis fails is answered with that error, not with an empty list.
- Where an attempt got no answer, or a part of the request was done, no error of a later attempt or
  part says that nothing was: it is `OutcomeUnknown` then (`errors.doubtful`).

Which node runs a script is a matter of speed only; see `store`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, assert_never

from distsync_node.errors import DistSyncError, Fenced, RedisUnavailable, doubtful
from distsync_node.queues.calls import (
    Call,
    NeedRing,
    NotOwner,
    PopCall,
    Popped,
    PushCall,
    Pushed,
    Refused,
    Reply,
    Request,
    Response,
    SignalCall,
    Signalled,
)
from distsync_node.queues.owners import NoAnswer, Owners
from distsync_node.queues.serving import ScheduleServer
from distsync_node.queues.store import QueueStore, new_attempt
from distsync_node.queues.sweeping import Sweeper
from distsync_node.queues.types import (
    ClaimedMessage,
    Fence,
    FenceUnverified,
    NewMessage,
    PopStatus,
    QueueConfig,
    QueueConfigChange,
    Settled,
)
from distsync_node.queues.types import Popped as Claims
from distsync_node.queues.wakeups import (
    MAX_WAITERS_PER_QUEUE,
    RECHECK_MS,
    Claim,
    Effect,
    Expire,
    GiveBack,
    Move,
    WaiterId,
    Wakeups,
)
from distsync_node.raft.types import Member
from distsync_node.services.alarm import Alarm
from distsync_node.services.runtime import boottime_ms

logger = logging.getLogger(__name__)

FENCE_TRIES: Final = 3
UNCLAIM_AGAIN_SECONDS: Final = 1.0
MAX_HOPS: Final = 2
REQUEST_ID_BYTES: Final = 20

Messages = tuple[ClaimedMessage, ...]
Verify = Callable[[Fence], Awaitable[None]]
"""Returns if the token is its lock's current exclusive grant by a linearizable read, else raises
Fenced or BadRequest."""


@dataclass(slots=True, kw_only=True)
class _Pop:
    queue: str
    count: int
    visibility_ms: int
    request_id: str  # changes only by `begin_anew`
    deadline_ms: int  # of the wait; 0 for none
    in_doubt: bool = False  # something of the request may have been done

    def left_ms(self) -> int:
        return max(0, self.deadline_ms - boottime_ms()) if self.deadline_ms else 0

    def begin_anew(self) -> None:
        """What the request claimed is settled or ran out; go on under the next id, which every
        node derives alike."""
        text = self.request_id.encode() + b"\0anew"
        self.request_id = blake2b(text, digest_size=REQUEST_ID_BYTES).hexdigest()


@dataclass(frozen=True, slots=True)
class Taken:
    """What a pop brought, and the request and the attempt under which it may be given back."""

    messages: Messages
    request_id: str
    attempt: str


@dataclass(slots=True, kw_only=True)
class _Poll:
    """A pop that waits here, as one attempt of it. Answered with None it has to move."""

    pop: _Pop
    attempt: str
    answer: asyncio.Future[Messages | None]
    waiter: WaiterId | None = None
    last: Claims | None = None  # what its claim brought


class QueueService:
    """Queues on the Redis of `url`; `start` it before use. An empty URL: every call is refused.

    Without `owners` every call is carried out here.
    """

    def __init__(self, url: str, owners: Owners | None = None) -> None:
        self._url = url
        self._owners = owners
        self._verify: Verify | None = None
        self._store: QueueStore | None = None
        self._wakeups = Wakeups()
        self._polls: dict[WaiterId, _Poll] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm = Alarm(boottime_ms, self._wakeups.next_tick_ms, self._tick)
        self._over = asyncio.Event()

    def verify_with(self, verify: Verify) -> None:
        """Have fencing tokens that are newer than any seen looked up by this."""
        self._verify = verify

    async def start(self) -> None:
        """Connect. A Redis that cannot be reached yet is no error: calls get 503 until then.

        Raises:
            StartupError: the URL is none, or the server must not be used as it is, in one line.
        """
        if self._url:
            self._store = await QueueStore.open(self._url)
            self._store.on_returned = self._signal
            server = ScheduleServer(self._store, self._serves, self._signal)
            self._spawn(server.run(self._over))
            self._spawn(Sweeper(self._store, self._serves).run(self._over))
        if self._owners is not None:
            self._owners.places.on_ring_change(self._ring_changed)
            self._owners.on_return = self._owner_returned

    def end_polls(self) -> None:
        """Answer every long poll with nothing, now and from now on: this node is about to stop."""
        self._over.set()
        for waiter, poll in list(self._polls.items()):
            self._leave(waiter)
            self._resolve(poll, ())
        if self._owners is not None:
            self._owners.end_waits()

    async def close(self) -> None:
        """End what is under way, and all connections."""
        self.end_polls()
        self._alarm.end()
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._owners is not None:
            await self._owners.close()
        if self._store is not None:
            await self._store.close()

    @property
    def waiting(self) -> int:
        """How many long polls wait here."""
        return len(self._wakeups)

    @property
    def store(self) -> QueueStore:
        """The store, for what neither waits nor wakes anyone.

        Raises:
            RedisUnavailable: there is none, or not yet.
        """
        if self._store is None:
            raise RedisUnavailable(
                "this node is still connecting to redis"
                if self._url
                else "this node was started without --redis, so it has no queues"
            )
        return self._store

    def owner_url(self, queue: str) -> str | None:
        """Return where clients reach the owner of a queue, if that is known."""
        owner = self._owners.owner(queue) if self._owners is not None else None
        return owner.client_url or None if owner is not None else None

    # --- Messages in --------------------------------------------------------------------------

    async def push(
        self,
        queue: str,
        messages: Sequence[NewMessage],
        *,
        request_id: str,
        fence: Fence | None,
    ) -> tuple[str, ...]:
        """See `QueueStore.push`. A token newer than any seen is looked up before it counts."""
        _ = self.store
        lock, token = (fence.lock, fence.token) if fence is not None else ("", 0)
        call = PushCall(queue, tuple(messages), request_id, lock, token)
        in_doubt = False
        try:
            for _ in range(MAX_HOPS):
                owner = self._owners.remote_owner(queue) if self._owners is not None else None
                if self._owners is None or owner is None:
                    break
                pushed = await self._owners.push(owner, call)
                if isinstance(pushed, Pushed):
                    return pushed.ids
                in_doubt = in_doubt or pushed is NoAnswer.MAYBE_DONE
            return await self._push_here(queue, messages, request_id, fence)
        except DistSyncError as error:
            if in_doubt:
                raise doubtful(error) from error
            raise

    async def _push_here(
        self, queue: str, messages: Sequence[NewMessage], request_id: str, fence: Fence | None
    ) -> tuple[str, ...]:
        for _ in range(FENCE_TRIES):
            outcome = await self.store.push(queue, messages, request_id=request_id, fence=fence)
            if not isinstance(outcome, FenceUnverified):
                delays = [one.delay_ms for one in messages if one.delay_ms]
                self._signal(queue, outcome.ready, min(delays, default=0))
                return outcome.ids
            if fence is None or self._verify is None:
                break
            await self._verify(fence)
            fence = Fence(lock=fence.lock, token=fence.token, checked=outcome.mark)
        raise Fenced("the lock changes hands too quickly to check its token; ask again")

    # --- Messages out -------------------------------------------------------------------------

    async def pop(
        self,
        queue: str,
        *,
        count: int,
        wait_ms: int,
        visibility_ms: int,
        request_id: str,
        in_doubt: bool = False,
    ) -> Taken:
        """Claim up to `count` messages; wait up to `wait_ms` until there is one.

        `in_doubt`: something else that the request asked for was, or may have been, done already.
        """
        pop = _Pop(
            queue=queue,
            count=count,
            visibility_ms=visibility_ms,
            request_id=request_id,
            deadline_ms=boottime_ms() + wait_ms if wait_ms else 0,
            in_doubt=in_doubt,
        )
        try:
            return await self._pop(pop)
        except DistSyncError as error:
            if pop.in_doubt:
                raise doubtful(error) from error
            raise

    async def _pop(self, pop: _Pop) -> Taken:
        _ = self.store  # without Redis nothing is waited for
        epoch, hops = -1, 0
        while True:
            owner = None
            if self._owners is not None and not self._over.is_set():
                owner = self._owners.remote_owner(pop.queue)
                if epoch != self._owners.epoch:
                    epoch, hops = self._owners.epoch, 0
            attempt = new_attempt()
            if self._owners is None or owner is None or hops == MAX_HOPS:
                messages = await self._pop_here(pop, attempt)
                hops = 0  # if it is to move, that is for another reason than before
            else:
                hops += 1
                messages = await self._pop_there(self._owners, owner, pop, attempt)
            if messages is not None:
                return Taken(messages, pop.request_id, attempt)
            if pop.deadline_ms and not pop.left_ms():
                # An owner whose answer was lost may have claimed; this brings what it has.
                attempt = new_attempt()
                return Taken(await self._pop_now(pop, attempt), pop.request_id, attempt)

    def give_back(self, queue: str, taken: Taken) -> None:
        """No byte of the answer was written: the messages return at once, unless another attempt
        of the same request has been answered with them."""
        self._spawn(self._unclaim(queue, taken.request_id, taken.attempt))

    async def _pop_there(
        self, owners: Owners, owner: Member, pop: _Pop, attempt: str
    ) -> Messages | None:
        """Pop at the owner. None: nothing came of it, so far as is known."""
        call = PopCall(
            pop.queue, pop.count, pop.left_ms(), pop.visibility_ms, pop.request_id, attempt
        )
        try:
            popped = await owners.pop(owner, call)
        except asyncio.CancelledError:
            # The owner gives back what it claims from now on; here, what it has answered with.
            self._spawn(self._unclaim_twice(pop.queue, pop.request_id, attempt))
            raise
        if isinstance(popped, Popped):
            pop.request_id = popped.request_id
            return popped.messages
        pop.in_doubt = pop.in_doubt or popped is NoAnswer.MAYBE_DONE
        return None

    async def _pop_here(self, pop: _Pop, attempt: str) -> Messages | None:
        """Pop, and wait, on this node. None: the queue has another owner now."""
        wait_ms = pop.left_ms()
        if wait_ms == 0 or self._over.is_set():
            return await self._pop_now(pop, attempt)
        poll = _Poll(pop=pop, attempt=attempt, answer=asyncio.get_running_loop().create_future())
        self._park(poll)
        try:
            return await poll.answer
        except asyncio.CancelledError:
            self._abandon(poll)
            raise

    async def _pop_now(self, pop: _Pop, attempt: str) -> Messages:
        while True:
            popped = await self._pop_once(pop, attempt)
            if popped.messages or not popped.more:
                return popped.messages

    async def _pop_once(self, pop: _Pop, attempt: str) -> Claims:
        return await self.store.pop(
            pop.queue,
            count=pop.count,
            visibility_ms=pop.visibility_ms,
            request_id=pop.request_id,
            attempt=attempt,
        )

    # --- Messages claimed ---------------------------------------------------------------------

    async def ack(
        self, queue: str, receipts: Sequence[str], *, request_id: str, field: str = "receipts"
    ) -> Settled:
        """See `QueueStore.ack`."""
        settled = await self.store.ack(queue, receipts, request_id=request_id, field=field)
        self._signal(queue, settled.ready)
        return settled

    async def nack(
        self,
        queue: str,
        receipts: Sequence[str],
        *,
        delay_ms: int,
        dead: bool,
        request_id: str,
        spend: bool = True,
    ) -> Settled:
        """See `QueueStore.nack`."""
        settled = await self.store.nack(
            queue, receipts, delay_ms=delay_ms, dead=dead, spend=spend, request_id=request_id
        )
        self._signal(queue, settled.ready, delay_ms)
        return settled

    # --- The queue as a whole -----------------------------------------------------------------

    async def redrive(self, queue: str, *, request_id: str) -> int:
        """See `QueueStore.redrive`."""
        moved = await self.store.redrive(queue, request_id=request_id)
        self._signal(queue, moved)
        return moved

    async def configure(
        self, queue: str, change: QueueConfigChange, *, create: bool
    ) -> QueueConfig:
        """See `QueueStore.configure`. Whoever waits looks again: the queue may go on now."""
        config = await self.store.configure(queue, change, create=create)
        self._signal(queue, MAX_WAITERS_PER_QUEUE)
        return config

    # --- Calls of other nodes -----------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        """Carry out another node's call as the owner, or say who that is."""
        if self._owners is None:
            return Response(None, NotOwner())
        places = self._owners.places
        if (request.to, request.cluster_id) != (places.own_id, places.cluster_id):
            return Response(None, NotOwner())
        if request.ring is not None:
            places.adopt_ring(request.ring)
        if request.epoch > places.ring().epoch:
            return Response(None, NeedRing())
        reply: Reply
        try:
            reply = await self._answer(request.call)
        except DistSyncError as error:
            reply = Refused(error.code, error.detail, error.fields)
        ring = places.ring()
        return Response(ring.state if ring.epoch > request.epoch else None, reply)

    async def _answer(self, call: Call) -> Reply:
        match call:
            case SignalCall(ready=ready, delays=delays):
                if not ready:
                    await self.store.ping()
                for queue, count in ready.items():
                    self._hear(queue, count, delays.get(queue, 0))
                return Signalled()
            case PushCall() | PopCall() if not self._owns(call.queue):
                return NotOwner()
            case PushCall():
                fence = Fence(lock=call.lock, token=call.token) if call.lock else None
                return Pushed(
                    await self._push_here(call.queue, call.messages, call.request_id, fence)
                )
            case PopCall():
                pop = _Pop(
                    queue=call.queue,
                    count=call.count,
                    visibility_ms=call.visibility_ms,
                    request_id=call.request_id,
                    deadline_ms=boottime_ms() + call.wait_ms if call.wait_ms else 0,
                )
                messages = await self._pop_here(pop, call.attempt)
                if messages is None:
                    return NotOwner()
                return Popped(messages, pop.request_id)
            case _:
                assert_never(call)

    def unanswered(self, call: Call, reply: Reply) -> None:
        """The caller has gone, and no byte of the reply was written."""
        if isinstance(call, PopCall) and isinstance(reply, Popped) and reply.messages:
            self.give_back(call.queue, Taken(reply.messages, reply.request_id, call.attempt))

    def _serves(self, queue: str) -> bool:
        """Whether a queue is for this node to look after: its own, and those of owners that do
        not answer."""
        return self._owners is None or self._owners.remote_owner(queue) is None

    def _owns(self, queue: str) -> bool:
        return self._owners is not None and self._owners.is_own(self._owners.owner(queue))

    def _ring_changed(self) -> None:
        """Whoever waits is to wait at the owner of now."""
        if self._owners is not None:
            self._owners.ring_changed()
        self._carry_out(self._wakeups.move(lambda _queue: True))

    def _owner_returned(self) -> None:
        """Who waits here because the owner could not be reached is to wait there again."""
        owners = self._owners
        if owners is not None:
            self._carry_out(
                self._wakeups.move(lambda queue: owners.remote_owner(queue) is not None)
            )

    # --- Who waits ----------------------------------------------------------------------------

    def _signal(self, queue: str, ready: int, delay_ms: int = 0) -> None:
        """Messages can be claimed, or can when a delay ends: tell who waits here, and the owner
        where others wait. A delay that the next look at the queue finds need not be told."""
        if delay_ms >= RECHECK_MS:
            delay_ms = 0
        if ready <= 0 and not delay_ms:
            return
        self._hear(queue, ready, delay_ms)
        owner = self._owners.remote_owner(queue) if self._owners is not None else None
        if self._owners is not None and owner is not None:
            self._owners.signal(owner, queue, ready, delay_ms)

    def _hear(self, queue: str, ready: int, delay_ms: int) -> None:
        if delay_ms:
            self._wakeups.expect(queue, delay_ms, boottime_ms())
        self._carry_out(self._wakeups.signal(queue, ready))

    def _park(self, poll: _Poll) -> None:
        waiter, effects = self._wakeups.park(
            poll.pop.queue,
            wanted=poll.pop.count,
            deadline_ms=poll.pop.deadline_ms,
            now_ms=boottime_ms(),
        )
        poll.waiter = waiter
        self._polls[waiter] = poll
        self._carry_out(effects)

    def _leave(self, waiter: WaiterId) -> None:
        """Forget a waiter; at once, unless a claim is under way that has to be given back."""
        self._wakeups.leave(waiter)
        if not self._wakeups.knows(waiter):
            self._polls.pop(waiter, None)

    def _abandon(self, poll: _Poll) -> None:
        """Its client has gone, perhaps at the very moment in which it was answered."""
        if poll.waiter in self._polls:
            self._leave(poll.waiter)
        elif poll.last is not None and poll.last.messages:
            self._spawn(self._unclaim(poll.pop.queue, poll.pop.request_id, poll.attempt))

    def _carry_out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Claim(waiter=waiter):
                    self._spawn(self._claim(waiter, self._polls[waiter]))
                case Expire(waiter=waiter):
                    self._resolve(self._polls.pop(waiter), ())
                case Move(waiter=waiter):
                    self._resolve(self._polls.pop(waiter), None)
                case GiveBack(waiter=waiter):
                    poll = self._polls.pop(waiter)
                    self._spawn(self._unclaim(poll.pop.queue, poll.pop.request_id, poll.attempt))
                case _:
                    assert_never(effect)
        if not self._over.is_set():
            self._alarm.look()

    async def _claim(self, waiter: WaiterId, poll: _Poll) -> None:
        """Pop for a waiter and report what came of it."""
        try:
            popped = await self._pop_once(poll.pop, poll.attempt)
            while popped.status is PopStatus.REPEATED and not popped.messages:
                poll.pop.begin_anew()  # or it would wait in vain while the request is remembered
                popped = await self._pop_once(poll.pop, poll.attempt)
        except Exception as error:  # whatever it is, it is the answer of whoever waits
            self._wakeups.leave(waiter)
            self._report(waiter, got=0, more=False, next_ms=None)
            if not poll.answer.done():
                poll.answer.set_exception(error)
            return
        poll.last = popped
        self._report(waiter, got=len(popped.messages), more=popped.more, next_ms=popped.next_ms)

    def _report(self, waiter: WaiterId, *, got: int, more: bool, next_ms: int | None) -> None:
        if self._polls[waiter].answer.cancelled():
            self._wakeups.leave(waiter)  # it has not had its turn to say so
        effects = self._wakeups.claimed(
            waiter, got=got, more=more, next_ms=next_ms, now_ms=boottime_ms()
        )
        self._carry_out(effects)
        if self._wakeups.knows(waiter):
            return
        ended = self._polls.pop(waiter, None)
        if ended is not None and got and ended.last is not None:
            self._resolve(ended, ended.last.messages)

    async def _unclaim(self, queue: str, request_id: str, attempt: str) -> None:
        try:
            unclaimed = await self.store.unclaim(queue, request_id=request_id, attempt=attempt)
        except DistSyncError as error:
            logger.warning("claims of a client that went stay until their deadline: %s", error)
        else:
            self._signal(queue, unclaimed.ready)

    async def _unclaim_twice(self, queue: str, request_id: str, attempt: str) -> None:
        """For an attempt of another node: its claim may come after this, and its answer be on its
        way before it knows that nobody waits for it."""
        await self._unclaim(queue, request_id, attempt)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNCLAIM_AGAIN_SECONDS):
                await self._over.wait()
        await self._unclaim(queue, request_id, attempt)

    def _resolve(self, poll: _Poll, messages: Messages | None) -> None:
        if not poll.answer.done():
            poll.answer.set_result(messages)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tick(self) -> None:
        self._carry_out(self._wakeups.tick(boottime_ms()))
