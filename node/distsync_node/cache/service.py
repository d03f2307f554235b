"""The cache of a node: stamps events, steps the core and carries out what it wants, in order.

Guarantees of this shell:

- Every event is stamped with `CLOCK_BOOTTIME`, which counts suspension, as it is stepped: nothing
  is served by an older reading.
- Effects are carried out in the order given. Messages to one process leave in that order; those
  that answer what came leave in the answer. Any of them may be lost.
- A call of a client ends by its deadline, and with its client: what was not sent is not done then,
  and a write that was is unknown.
- A broken invariant stops the node: `on_broken`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, assert_never

import msgspec

from distsync_node.cache.effects import (
    Answer,
    Effect,
    EpochAcknowledged,
    LineDropped,
    RedisLoad,
    RedisPut,
    Retired,
    Send,
)
from distsync_node.cache.events import (
    ClientGone,
    ClientRead,
    ClientWrite,
    Drain,
    Event,
    NodeLease,
    PeerMessage,
    RingAdopted,
    Tick,
)
from distsync_node.cache.lines.line import Line
from distsync_node.cache.links import PeerLink
from distsync_node.cache.memory import MainMemory
from distsync_node.cache.messages import Ask, Invalidate
from distsync_node.cache.misses import Miss
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.tables import DIRTY, HAS_RECORD, OWNED
from distsync_node.cache.types import (
    Change,
    Code,
    Durability,
    Found,
    Missing,
    OpId,
    Outcome,
    PeerId,
    Record,
    Refused,
    Version,
    Written,
    peer_id,
)
from distsync_node.cache.values import RESERVED
from distsync_node.cache.wire import (
    PATHS,
    Parcel,
    decode_parcel,
    encode_message,
    encode_parcel,
    member_of,
    path_of,
)
from distsync_node.cluster.ring_state import Epoch, RingState, Server
from distsync_node.errors import LimitReached, RedisUnavailable, ShuttingDown, Unavailable
from distsync_node.peers.inbound import Receiver, RespondBytes
from distsync_node.peers.outbound import Target
from distsync_node.raft.types import Member, MemberId
from distsync_node.services.alarm import Alarm
from distsync_node.services.runtime import boottime_ms

logger = logging.getLogger(__name__)

MAX_CALLS: Final = 10_000  # of clients, that wait here
UNHELD_SECONDS: Final = 0.005  # before a key is looked at again whose line is not here
ARM_SECONDS: Final = 0.001  # as long as a deadline may be late
STALLED_SECONDS: Final = 5.0  # a drain that has written nothing back for so long is given up


_DEFAULTS: Final = CacheOptions()


class Places(Protocol):
    """What the cache needs to know of the cluster: `services.node.NodeService`."""

    @property
    def cluster_id(self) -> str:
        """The cluster this member belongs to, '' for none."""
        ...

    def own_server(self) -> Server | None:
        """Return this process as it enters the ring; None while its cluster does not know it."""
        ...

    def member(self, member_id: MemberId) -> Member | None:
        """Return a member of the configuration."""
        ...

    def on_log_ring(self, callback: Callable[[RingState], None]) -> None:
        """Have `callback` called with each ring of the log, one after the other."""
        ...

    def on_lease(self, callback: Callable[[Epoch, int], None]) -> None:
        """Have `callback` called with each lease: the epoch, and until when. 0: it is given up."""
        ...

    def acknowledge(self, epoch: Epoch) -> None:
        """Nothing is done under an older epoch here any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LineView:
    """A line as an operator sees it; `remaining_ms` 0: it does not expire."""

    key: str
    state: str
    version: Version
    size: int
    dirty: bool
    home: str | None
    remaining_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """What this node holds now, and what it has done since it started."""

    lines: dict[str, int]
    bytes: int
    max_bytes: int
    dirty_bytes: int
    kept_bytes: int
    hits: int
    misses: dict[str, int]  # by reason
    snoops: int
    invalidations: int
    write_backs: int
    evictions: int
    dropped: int
    oldest_dirty_ms: int
    durability: str
    epoch: int  # of the ring it goes by
    settled: bool  # CacheNode.is_settled


class Nowhere:
    """The `Places` of a node that has no cache."""

    cluster_id = ""

    def own_server(self) -> Server | None:
        """Return None: it enters no ring."""
        return None

    def member(self, member_id: MemberId) -> Member | None:  # noqa: ARG002
        """Return None: it knows nobody."""
        return None

    def on_log_ring(self, callback: Callable[[RingState], None]) -> None:
        """Nothing: there is no ring."""

    def on_lease(self, callback: Callable[[Epoch, int], None]) -> None:
        """Nothing: there is no lease."""

    def acknowledge(self, epoch: Epoch) -> None:
        """Nothing: there is no epoch."""


class CacheService:
    """The cache on the Redis of `url`; `start` it before use. An empty URL: calls are refused."""

    def __init__(
        self,
        url: str,
        places: Places,
        make_target: Callable[[str], Target],
        *,
        options: CacheOptions = _DEFAULTS,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._places = places
        self._make_target = make_target
        self._options = _with_own_keys(options)
        self._on_broken = on_broken
        self._own_context = contextvars.copy_context()
        self._memory = MainMemory(url) if url else None
        self._node: CacheNode | None = None
        self._me = PeerId("")
        self._links: dict[PeerId, PeerLink] = {}
        self._touched: dict[PeerLink, None] = {}
        self._answers: dict[OpId, asyncio.Future[Outcome]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_op = 0
        self._alarm = Alarm(boottime_ms, self._next_tick_ms, lambda: self.step(Tick()), least_ms=1)
        self._retired = asyncio.Event()
        self._closed = False
        self.hits = 0  # reads of clients that were served here
        self._ring_came = asyncio.Event()
        self._dropped = 0
        self._home_urls: dict[MemberId, str] = {}  # a node that moves is a new process
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._misses = dict.fromkeys(Miss, 0)

    async def start(self) -> None:
        """Connect. A Redis that cannot be reached yet is no error: calls get 503 until then.

        Raises:
            StartupError: the server must not be used as it is, in one line.
        """
        if self._memory is not None:
            await self._memory.start()
            self._places.on_log_ring(self._log_has_ring)
            self._places.on_lease(lambda epoch, ends_ms: self.step(NodeLease(epoch, ends_ms)))

    async def drain(self, timeout_seconds: float | None) -> bool:
        """Write back everything and serve nothing any more; returns whether that is done.

        When it cannot be done in time, or does not go on, the cache ends as it is: what other nodes
        keep is safe. None: it takes as long as it takes, also until Redis is back.
        """
        node = self._node
        if node is None:
            return True
        if self._closed:
            return self._retired.is_set()
        self.step(Drain())
        if timeout_seconds is None:
            await self._retired.wait()
        elif not await self._retires_in(node, timeout_seconds):
            logger.error("%d bytes were not written back to redis", node.unwritten_bytes)
            self._end()
        return self._retired.is_set()

    async def _retires_in(self, node: CacheNode, timeout_seconds: float) -> bool:
        """Wait for it, but only for as long as there is less and less to write back."""
        loop = asyncio.get_running_loop()
        ends_s = loop.time() + timeout_seconds
        left_bytes = node.unwritten_bytes
        while True:
            try:
                async with asyncio.timeout(min(STALLED_SECONDS, ends_s - loop.time())):
                    return await self._retired.wait()
            except TimeoutError:
                before_bytes, left_bytes = left_bytes, node.unwritten_bytes
                if left_bytes >= before_bytes or loop.time() >= ends_s:
                    return False

    def _end(self) -> None:
        """From now on this process takes no part."""
        self._closed = True
        self._alarm.end()
        for future in self._answers.values():
            if not future.done():
                future.set_result(Refused(Code.UNKNOWN))
        self._answers.clear()

    async def close(self) -> None:
        """End what is under way, and all connections."""
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(link.close() for link in self._links.values()))
        if self._memory is not None:
            await self._memory.close()

    # --- Calls of clients ---------------------------------------------------------------------

    @property
    def node(self) -> CacheNode:
        """The core.

        Raises:
            RedisUnavailable: this node has no cache.
            Unavailable: it is not a member of its cluster yet.
            ShuttingDown: it has left the ring.
        """
        if self._memory is None:
            raise RedisUnavailable("this node was started without --redis, so it has no cache")
        if self._closed or self._retired.is_set():
            raise ShuttingDown("this node stops; ask another one")
        if self._node is None:
            raise Unavailable("this node does not belong to the ring yet")
        return self._node

    @property
    def is_out(self) -> bool:
        """Whether calls are for others: this node leaves the ring, or has not come into it yet."""
        if self._memory is None:
            return False  # nor do others have a cache
        node = self._node
        return node is None or self._leaves or node.context.me not in node.context.peers

    def is_at_work(self, epoch: Epoch) -> bool:
        """Whether no call waits here for the ring of that epoch: see `CacheNode.is_at_work`.

        A node that has no cache has nothing to wait for.
        """
        if self._memory is None:
            return True
        node = self._node
        return node is not None and node.context.epoch == epoch and node.is_at_work

    async def is_in(self, within_seconds: float) -> bool:
        """Wait until this node is in the ring, or so long; not if it leaves."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                while self.is_out and not self._leaves:
                    self._ring_came.clear()
                    await self._ring_came.wait()
        return not self.is_out

    @property
    def _leaves(self) -> bool:
        return self._closed or (self._node is not None and self._node.context.draining)

    def hit(self, key: str) -> Record | None:
        """Return what can be served at once; the clock is read for it, with no await between."""
        node = self._node
        if node is None or self._closed:
            return None
        return node.hit(key, boottime_ms())

    async def read(self, key: str, timeout_ms: int) -> Found | Missing | Refused:
        """Read a key. Raises as `node`, and LimitReached: too many calls wait here."""
        outcome = await self._call(lambda op: ClientRead(op, key), timeout_ms)
        if isinstance(outcome, Written):
            raise TypeError("a read was answered as a write")
        return outcome

    def count_miss(self, key: str) -> None:
        """Count a read that needs a line which is not here, by the reason. Raises as `node`."""
        self._misses[self.node.lines.held.miss(key)] += 1

    async def write(self, key: str, change: Change, timeout_ms: int) -> Written | Refused:
        """Write or delete a key. Raises as `read`."""
        outcome = await self._call(lambda op: ClientWrite(op, key, change), timeout_ms)
        if isinstance(outcome, Found | Missing):
            raise TypeError("a write was answered as a read")
        self._wake_watchers(key)
        return outcome

    async def _call(self, make_event: Callable[[OpId], Event], timeout_ms: int) -> Outcome:
        _ = self.node
        if len(self._answers) >= MAX_CALLS:
            raise LimitReached("too many calls of the cache wait on this node", limit="waiters")
        self._last_op += 1
        op = OpId(self._last_op)
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._answers[op] = future
        self.step(make_event(op))
        if future.done():
            return future.result()
        timer = asyncio.get_running_loop().call_later(timeout_ms / 1_000, self._gone, op)
        try:
            return await future
        except asyncio.CancelledError:
            self._gone(op)
            raise
        finally:
            timer.cancel()

    def _gone(self, op: OpId) -> None:
        """Its time is over, or its client has gone."""
        if op in self._answers:
            self.step(ClientGone(op))
        self._answer(op, Refused(Code.UNKNOWN))  # unless the core has answered

    def _answer(self, op: OpId, outcome: Outcome) -> None:
        future = self._answers.pop(op, None)
        if future is not None and not future.done():
            future.set_result(outcome)

    async def changed(self, keys: Iterable[str], timeout_seconds: float) -> None:
        """Wait until one of the keys may have changed, or so long. Their lines have to be here."""
        event = asyncio.Event()
        names = tuple(keys)
        for key in names:
            self._watchers.setdefault(key, set()).add(event)
        try:
            async with asyncio.timeout(timeout_seconds):
                while all(self.hit(key) is not None for key in names):
                    event.clear()
                    await event.wait()
        except TimeoutError:
            return
        else:
            await asyncio.sleep(UNHELD_SECONDS)
        finally:
            for key in names:
                self._watchers[key].discard(event)
                if not self._watchers[key]:
                    del self._watchers[key]

    def _wake_watchers(self, key: str) -> None:
        for event in self._watchers.get(key, ()):
            event.set()

    # --- What others see ----------------------------------------------------------------------

    @property
    def durability(self) -> str:
        """The mode of keys without a prefix of their own."""
        return self._options.durability.value

    @property
    def redis_trouble(self) -> str:
        """What Redis said to the last call, if that failed."""
        trouble = None if self._memory is None else self._memory.trouble
        return "redis does not serve" if trouble is None else trouble.detail

    def state(self, key: str) -> str:
        """Return the state of the line here: M, E, S or I."""
        line = None if self._node is None else self._node.lines.held.lru.get(key)
        return "I" if line is None else state_of(line)

    def home_url(self, key: str) -> str | None:
        """Return where clients reach the home of a key, if that is known."""
        server = None if self._node is None else self._node.context.ring.owner(key)
        if server is None:
            return None
        url = self._home_urls.get(server.member)
        if url is None:
            member = self._places.member(server.member)
            if member is None or not member.client_url:
                return None
            url = self._home_urls[server.member] = member.client_url
        return url

    def lines(self, after: str, limit: int) -> tuple[list[LineView], str | None]:
        """Return the lines of keys behind `after`, in their order, and `after` of the next page."""
        node, now_ms = self.node, boottime_ms()
        held = (key for key, line in node.lines.held.lru.items() if line.record is not None)
        keys = heapq.nsmallest(limit + 1, (key for key in held if key > after))
        views = [self._view(node, key, now_ms) for key in keys[:limit]]
        return views, keys[limit - 1] if len(keys) > limit else None

    def _view(self, node: CacheNode, key: str, now_ms: int) -> LineView:
        line = node.lines.held.lru.get(key)
        if line is None or line.record is None:
            raise KeyError(key)
        ends_ms = line.record.expires_ms
        return LineView(
            key=key,
            state=state_of(line),
            version=line.record.version,
            size=line.size,
            dirty=line.state in DIRTY,
            home=None if line.home is None else line.home.rsplit("/", 2)[0],
            remaining_ms=max(1, ends_ms - now_ms) if ends_ms else 0,
        )

    def stats(self) -> CacheStats:
        """Return what is here now, and what was done so far. Raises as `node`."""
        node = self.node
        lines = {"M": 0, "E": 0, "S": 0}
        for _key, line in node.lines.held.lru.items():  # noqa: PERF102 - it is no dict
            state = state_of(line)
            if state in lines:
                lines[state] += 1
        now_ms = boottime_ms()
        return CacheStats(
            lines=lines,
            bytes=node.lines.held.lru.bytes,
            max_bytes=self._options.max_bytes,
            dirty_bytes=node.lines.held.dirty_bytes + node.home.directory.dirty_bytes,
            kept_bytes=node.kept.bytes,
            hits=self.hits,
            misses={why.value: count for why, count in self._misses.items()},
            snoops=node.lines.held.snoops,
            invalidations=node.lines.held.invalidations,
            write_backs=0 if self._memory is None else self._memory.stored,
            evictions=node.lines.held.evictions,
            dropped=self._dropped,
            oldest_dirty_ms=now_ms - node.dirty_since_ms(now_ms),
            durability=self._options.durability.value,
            epoch=node.context.epoch,
            settled=node.is_settled,
        )

    # --- Events -------------------------------------------------------------------------------

    def step(self, event: Event) -> None:
        """Step the core and carry out what it wants."""
        node = self._node
        if node is None or self._closed:
            return
        try:
            for effect in node.step(event, boottime_ms()):
                self._carry_out(effect)
        except Exception as error:  # a broken promise of the code: stop rather than go on
            logger.critical("the cache cannot go on", exc_info=error)
            self._end()
            self._on_broken(error)
            return
        if self._touched:
            touched, self._touched = self._touched, {}
            for link in touched:
                link.kick()
        self._alarm.look_within(ARM_SECONDS)

    def _log_has_ring(self, ring: RingState) -> None:
        if self._node is None:
            server = self._places.own_server()
            if server is None:
                return
            self._node = CacheNode(server, self._options)
            self._me = self._node.context.me
        self._home_urls.clear()
        peers = {peer_id(server) for server in ring.servers}
        for peer in [peer for peer in self._links if peer not in peers]:
            self._spawn(self._links.pop(peer).close())
        self.step(RingAdopted(ring, left_have_ended=not ring.in_doubt))
        self._ring_came.set()

    def receivers(self) -> dict[str, Receiver]:
        """Return what takes parcels of other nodes, by path."""
        return dict.fromkeys(PATHS, self._receive)

    def _receive(self, body: bytes, respond: RespondBytes) -> None:
        """Take a parcel. What is there for its sender by then leaves in the answer."""
        parcel = decode_parcel(body)
        is_meant = self._node is not None and parcel.target == self._me
        if not is_meant or parcel.cluster_id != self._places.cluster_id or self._closed:
            respond(encode_parcel(self._places.cluster_id, self._me, parcel.source, ()))
            return
        link = self._link(parcel.source)
        link.held = True  # there is an answer on its way
        try:
            self._take(parcel)
        finally:
            link.held = False
        respond(encode_parcel(parcel.cluster_id, self._me, parcel.source, link.take()))
        link.kick()

    def _take(self, parcel: Parcel) -> None:
        for epoch, message in parcel.messages:
            self.step(PeerMessage(parcel.source, epoch, message))
            if self._watchers and isinstance(message, Ask | Invalidate):
                self._wake_watchers(message.key)

    def _replied(self, body: bytes) -> bool:
        try:
            parcel = decode_parcel(body)
        except msgspec.MsgspecError as error:
            logger.warning("the answer of another node cannot be read: %s", error)
            return False
        if parcel.target == self._me and parcel.cluster_id == self._places.cluster_id:
            self._take(parcel)
        return True

    # --- Effects ------------------------------------------------------------------------------

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Send():
                link = self._link(effect.target)
                link.push(path_of(effect.message), encode_message(effect))
                self._touched[link] = None
            case Answer():
                self._answer(effect.op, effect.outcome)
            case RedisLoad() | RedisPut():
                self._spawn(self._ask_redis(effect))
            case EpochAcknowledged():
                # Not from within a step of the replica, which may have led to this.
                asyncio.get_running_loop().call_soon(self._places.acknowledge, effect.epoch)
            case LineDropped():
                self._dropped += 1
                logger.warning(
                    "%r is lost: version %d.%d was only here", effect.key, *effect.version
                )
            case Retired():
                self._retired.set()
            case _:
                assert_never(effect)

    async def _ask_redis(self, effect: RedisLoad | RedisPut) -> None:
        if self._memory is not None:
            self.step(await self._memory.request(self._places.cluster_id, effect))

    def _link(self, peer: PeerId) -> PeerLink:
        link = self._links.get(peer)
        if link is None:

            def wrap(messages: Sequence[bytes]) -> bytes:
                return encode_parcel(self._places.cluster_id, self._me, peer, messages)

            link = self._links[peer] = PeerLink(self._make_target, wrap, self._replied)
        member = self._places.member(member_of(peer))
        if member is not None:
            link.address(member.peer_url)
        return link

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=self._own_context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _next_tick_ms(self) -> int | None:
        return None if self._node is None else self._node.next_tick_ms()


def no_cache() -> CacheService:
    """Return what refuses every call: a node without Redis."""

    def no_target(url: str) -> Target:
        return Target(url, "", "")

    return CacheService("", Nowhere(), no_target, on_broken=logger.critical)


def _with_own_keys(options: CacheOptions) -> CacheOptions:
    """What tags and computations rest on must outlive any node."""
    own = ((RESERVED, Durability.WRITE_THROUGH),)
    return replace(options, durability_by_prefix=(*options.durability_by_prefix, *own))


def state_of(line: Line) -> str:
    """Return the state of a line among MESI's four; one on its way counts as what it holds yet."""
    if line.state not in HAS_RECORD:
        return "I"
    if line.state in DIRTY:
        return "M"
    return "E" if line.state in OWNED else "S"
