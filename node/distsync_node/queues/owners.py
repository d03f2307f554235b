"""The way to the node that owns a queue.

Guarantees:

- A call that did not get to its owner, or whose answer did not come back, ends with `NoAnswer`: the
  caller runs the script itself then, under the same request id. So an owner that is dead, paused
  or cut off costs time, never a message. What is `MAYBE_DONE` is never said to be certainly not.
- Who did not answer is left alone, and calls to it that wait end at once. It is asked once a second
  whether it can serve; when it can, `on_return` is called. An owner at which calls wait is asked so
  too.
- Rings only get newer, here and there; a call takes at most two hops.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, Protocol

import msgspec

from distsync_node.cluster.ring_state import Epoch, RingState
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import RedisUnavailable, error_of_code
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.peers.sharing import SharedRequests
from distsync_node.queues.calls import (
    CALLS_PATH,
    POP_PATH,
    PUSH_PATH,
    SIGNAL_PATH,
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
    decode_response,
    decode_responses,
    encode,
)
from distsync_node.raft.types import Member, MemberId

logger = logging.getLogger(__name__)

ANSWER_MS: Final = 1_000  # for a call that does not wait
AVOID_SECONDS: Final = 1.0
WATCH_SECONDS: Final = 1.0
MAX_QUEUES_SIGNALLED: Final = 1_000  # in one call

_PATHS: Final[dict[type[Call], str]] = {
    PushCall: PUSH_PATH,
    PopCall: POP_PATH,
    SignalCall: SIGNAL_PATH,
}


class NoAnswer(Enum):
    """What a call came to that the owner did not answer."""

    NOT_DONE = auto()
    MAYBE_DONE = auto()


class Places(Protocol):
    """What a node knows of ring and members; `services.node.NodeService` is the real thing."""

    @property
    def own_id(self) -> MemberId | None:
        """The id of this member, once its data directory is open."""
        ...

    @property
    def cluster_id(self) -> str:
        """The cluster this member belongs to, '' for none."""
        ...

    def ring(self) -> RingView:
        """Return the newest ring known here."""
        ...

    def adopt_ring(self, ring: RingState) -> None:
        """Take over a ring that another node knows, if it is newer."""
        ...

    def member(self, member_id: MemberId) -> Member | None:
        """Return a member of the configuration."""
        ...

    def on_ring_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever the ring known here is another."""
        ...


class Owners:
    """Finds owners and calls them."""

    def __init__(self, places: Places, client: PeerClient) -> None:
        self.places = places
        self._client = client
        self.on_return: Callable[[], None] = lambda: None
        self._avoided: dict[MemberId, asyncio.Task[None]] = {}
        self._shared: dict[MemberId, SharedRequests[Response]] = {}
        self._waiting: dict[asyncio.Future[Response], tuple[MemberId, str]] = {}
        self._signals: dict[MemberId, SignalCall] = {}
        self._signalling: dict[MemberId, asyncio.Task[None]] = {}
        self._watching: dict[MemberId, asyncio.Task[None]] = {}

    @property
    def epoch(self) -> Epoch:
        """The epoch of the ring known here."""
        return self.places.ring().epoch

    def owner(self, queue: str) -> Member | None:
        """Return who owns a queue by the ring; None if that is nobody known."""
        server = self.places.ring().owner(queue)
        return None if server is None else self.places.member(server.member)

    def is_own(self, member: Member | None) -> bool:
        """Return whether that member is this node."""
        return member is not None and member.id == self.places.own_id

    def remote_owner(self, queue: str) -> Member | None:
        """Return the owner to be asked; None: it is this node, or cannot be reached just now."""
        member = self.owner(queue)
        if member is None or not member.peer_url or member.id == self.places.own_id:
            return None
        return None if member.id in self._avoided else member

    def ring_changed(self) -> None:
        """Calls that wait at a node which is not the owner any more end without an answer."""
        for request, (member_id, queue) in list(self._waiting.items()):
            owner = self.owner(queue)
            if owner is None or owner.id != member_id:
                request.cancel()

    def end_waits(self) -> None:
        """Calls under way end without an answer."""
        for request in list(self._waiting):
            request.cancel()

    async def close(self) -> None:
        """End what is under way."""
        self.end_waits()
        tasks = [*self._signalling.values(), *self._watching.values(), *self._avoided.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(shared.close() for shared in self._shared.values()))

    # --- Calls --------------------------------------------------------------------------------

    async def push(self, member: Member, call: PushCall) -> Pushed | NoAnswer:
        """Push at the owner.

        Raises:
            DistSyncError: what the owner met.
        """
        reply = await self._ask(member, call, call.queue, ANSWER_MS)
        return reply if isinstance(reply, Pushed | NoAnswer) else NoAnswer.MAYBE_DONE

    async def pop(self, member: Member, call: PopCall) -> Popped | NoAnswer:
        """Pop at the owner. Raises as `push`."""
        if call.wait_ms > ANSWER_MS and member.id not in self._watching:
            task = asyncio.create_task(self._watch(member))
            self._watching[member.id] = task
            task.add_done_callback(lambda _: self._watching.pop(member.id, None))
        reply = await self._ask(member, call, call.queue, call.wait_ms + ANSWER_MS)
        return reply if isinstance(reply, Popped | NoAnswer) else NoAnswer.MAYBE_DONE

    async def _watch(self, member: Member) -> None:
        """Find out whether an owner at which calls wait can still serve; `_avoid` ends them."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if all(member_id != member.id for member_id, _ in self._waiting.values()):
                return
            await self._tell(member, SignalCall({}, {}))

    def signal(self, member: Member, queue: str, ready: int, delay_ms: int = 0) -> None:
        """Tell the owner that messages can be claimed, and when a delay ends (0: none does).

        Lost signals cost a second, no more.
        """
        news = self._signals.setdefault(member.id, SignalCall({}, {}))
        if queue in news.ready or len(news.ready) < MAX_QUEUES_SIGNALLED:
            news.ready[queue] = news.ready.get(queue, 0) + ready
            if delay_ms:
                news.delays[queue] = min(delay_ms, news.delays.get(queue, delay_ms))
        if member.id not in self._signalling:
            self._signalling[member.id] = asyncio.create_task(self._send_signals(member))

    async def _send_signals(self, member: Member) -> None:
        """Signals gather while the ones before are on their way."""
        while signals := self._signals.pop(member.id, None):
            await self._tell(member, signals)
        # Between the look above and this nothing else runs: a later signal starts another task.
        del self._signalling[member.id]

    async def _tell(self, member: Member, signals: SignalCall) -> bool:
        """Send signals; return whether they arrived."""
        try:
            return isinstance(await self._ask(member, signals, "", ANSWER_MS), Signalled)
        except Exception as error:
            logger.warning("a signal to %s failed: %s", member.name, error)
            return False

    async def _ask(
        self, member: Member, call: Call, queue: str, timeout_ms: int
    ) -> Pushed | Popped | Signalled | NoAnswer:
        reply = await self._post(member, call, queue, timeout_ms, ring=None)
        if isinstance(reply, NeedRing):
            reply = await self._post(member, call, queue, timeout_ms, self.places.ring().state)
        match reply:
            case Refused(code=RedisUnavailable.code):
                # It has just started, or only its own way to Redis is broken; nothing was done.
                self._avoid(member, reply.detail)
                return NoAnswer.NOT_DONE
            case Refused():
                raise error_of_code(reply.code, reply.detail, reply.fields)
            case NotOwner() | NeedRing():
                return NoAnswer.NOT_DONE
            case _:
                return reply

    async def _post(
        self, member: Member, call: Call, queue: str, timeout_ms: int, ring: RingState | None
    ) -> Reply | NoAnswer:
        body = encode(Request(self.places.cluster_id, member.id, self.epoch, ring, call))
        way = self._share if _is_answered_at_once(call) else self._send
        request = asyncio.ensure_future(way(member, call, body, timeout_ms / 1_000))
        self._waiting[request] = (member.id, queue)
        try:
            await asyncio.wait((request,))
        finally:
            # Where the call is given up its connection ends, and with it the wait over there.
            del self._waiting[request]
            request.cancel()
        if request.cancelled():
            return NoAnswer.MAYBE_DONE
        try:
            response = request.result()
        except PeerUnreachable as error:
            self._avoid(member, str(error))
            return NoAnswer.MAYBE_DONE if error.sent else NoAnswer.NOT_DONE
        except msgspec.MsgspecError:
            self._avoid(member, "it answers in another format")
            return NoAnswer.MAYBE_DONE
        if response.ring is not None:
            self.places.adopt_ring(response.ring)
        return response.reply

    async def _send(self, member: Member, call: Call, body: bytes, seconds: float) -> Response:
        url = member.peer_url + _PATHS[type(call)]
        return decode_response(await self._client.post(url, body, timeout_seconds=seconds))

    async def _share(self, member: Member, _: Call, body: bytes, seconds: float) -> Response:
        shared = self._shared.get(member.id)
        if shared is None:
            shared = self._client.shared(CALLS_PATH, decode_responses)
            self._shared[member.id] = shared
        shared.address(member.peer_url)
        return await shared.call(body, seconds)

    def _avoid(self, member: Member, why: str) -> None:
        if member.id not in self._avoided:
            logger.warning("queues of %s are served here for now: %s", member.name, why)
            self._avoided[member.id] = asyncio.create_task(self._look_for(member))
        for request, (member_id, _) in list(self._waiting.items()):
            if member_id == member.id:
                request.cancel()

    async def _look_for(self, member: Member) -> None:
        """Leave a member alone until it can serve, or nothing is its to serve."""
        try:
            while True:
                await asyncio.sleep(AVOID_SECONDS)
                known = self.places.member(member.id) if self._is_in_ring(member) else None
                if known is None or await self._tell(known, SignalCall({}, {})):
                    break
        finally:
            del self._avoided[member.id]
        self.on_return()

    def _is_in_ring(self, member: Member) -> bool:
        return any(server.member == member.id for server in self.places.ring().state.servers)


def _is_answered_at_once(call: Call) -> bool:
    """Whether nothing is waited for but Redis: a fence may have to be looked up."""
    if isinstance(call, PushCall):
        return not call.lock
    return isinstance(call, PopCall) and not call.wait_ms
