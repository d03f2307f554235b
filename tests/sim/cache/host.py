"""A node of the simulated cluster: the real cache core and the real lease holder, and a shell."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
from distsync_node.cache.messages import Ask, AskWriteBack, GivenUp, Message, Reply
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.types import ABSENT, Change, OpId, Outcome, PeerId, peer_id
from distsync_node.cluster.leases import LeaseGrant, LeaseHolder, LeaseOptions
from distsync_node.cluster.ring_state import Epoch, Incarnation, RingState, Server
from distsync_node.raft.types import MemberId
from sim.cache.leader import NAME as LEADER
from sim.kernel import US_PER_MS, DriftingClock, Violation

if TYPE_CHECKING:
    from sim.cache.world import World

NEVER_US = 1 << 62


class Host:
    """One name in the cluster; its processes come and go."""

    def __init__(
        self,
        world: World,
        name: str,
        clock: DriftingClock,
        options: CacheOptions,
        lease_options: LeaseOptions,
    ) -> None:
        self.world = world
        self.name = name
        self.clock = clock
        self.options = options
        self.incarnation = 0
        self.alive = False
        self.paused = False
        self.joined = False  # whether it wants to be in the ring
        self.draining = False
        self.closed = False  # its cache takes no part any more
        self.ring_index = 0
        self._lease_options = lease_options
        self._kernel = world.kernel
        self._waiting: deque[tuple[bool, Callable[[], None]]] = deque()  # whether it is news
        self._answers: dict[OpId, Callable[[Outcome], None]] = {}
        self._last_op = 0
        self._tick_at_us = NEVER_US
        self._begin()

    @property
    def peer(self) -> PeerId:
        """The process of now."""
        return peer_id(self.server)

    @property
    def now_ms(self) -> int:
        """What its clock shows."""
        return self.clock.read_ms(self._kernel.now_us)

    def _begin(self) -> None:
        self.incarnation += 1
        member = MemberId(f"m-{self.name}")
        self.server = Server(self.name, member, Incarnation(self.incarnation))
        self.node = CacheNode(self.server, self.world.options_of_process(self.options))
        self._leases = LeaseHolder(self._lease_options, self.now_ms)
        self._acknowledged = Epoch(0)
        self.ring_index = 0
        self.closed = False
        self._tick_at_us = NEVER_US

    @property
    def is_leaving(self) -> bool:
        """Whether it has given up its node lease, to leave the ring."""
        return self._leases.is_leaving

    # --- Life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start a process."""
        self.alive, self.paused, self.joined, self.draining = True, False, True, False
        self._heartbeat(self.incarnation)

    def crash(self) -> None:
        """Everything in memory is gone."""
        self.world.lost_with(self)
        self.world.checks.dies(self)
        self.alive = self.paused = False
        self._waiting.clear()
        self._answers.clear()
        self._begin()

    def pause(self) -> None:
        """Stop; what comes waits."""
        self.paused = True

    def resume(self, *, news_lost: bool = False) -> None:
        """Go on, with everything that waited; or, as after a long sleep, without the news."""
        self.paused = False
        while self._waiting and not self.paused and self.alive:
            is_news, action = self._waiting.popleft()
            if not (is_news and news_lost):
                action()

    def drain(self) -> None:
        """Leave the ring in an orderly way: once the cache has retired."""
        self.draining = True
        self.step(Drain())

    def stop(self) -> None:
        """It has no time left: the cache ends as it is, and the node leaves the ring."""
        self.world.lost_with(self)
        self.closed = True
        self.leave()

    def leave(self) -> None:
        """Leave the ring, as the replica does when it is told to."""
        epoch = self._leases.leave()
        if epoch is not None:
            self.step(NodeLease(epoch, 0))
        self._send_heartbeat()

    # --- Events -------------------------------------------------------------------------------

    def do(self, action: Callable[..., None], *args: Any, is_news: bool = False) -> None:
        """Have something happen in the process of now, when it runs. News: from another node."""
        incarnation = self.incarnation
        if not self.alive:
            return
        if self.paused:
            self._waiting.append((is_news, lambda: self._if_same(incarnation, action, *args)))
        else:
            action(*args)

    def _if_same(self, incarnation: int, action: Callable[..., None], *args: Any) -> None:
        if self.incarnation == incarnation and self.alive:
            action(*args)

    def receive(self, target: PeerId, message: PeerMessage) -> None:
        """A message has come to this address."""
        if target == self.peer:
            self.do(self.step, message, is_news=True)

    def step(self, event: Event) -> None:
        """Step the core and carry out what it wants."""
        if self.closed:
            return
        effects = self.node.step(event, self.now_ms)
        self._kernel.steps += 1
        for effect in effects:
            self._carry_out(effect)
        self.world.after_step(self, event, effects)
        self._plan_tick()

    def _carry_out(self, effect: Effect) -> None:
        world, incarnation = self.world, self.incarnation
        match effect:
            case Send():
                target = effect.target.split("/", 1)[0]
                message = PeerMessage(self.peer, effect.epoch, effect.message)
                host = world.hosts[target]
                self._note(effect.message)
                self._kernel.trace(self.name, target, effect.epoch, repr(effect.message))
                world.network.send(self.name, target, host.receive, effect.target, message)
            case Answer():
                self._kernel.trace(self.name, "answer", effect.op, repr(effect.outcome))
                done = self._answers.pop(effect.op, None)
                world.answered(self, effect.op, effect.outcome)
                if done is not None:
                    done(effect.outcome)
            case RedisLoad() | RedisPut():
                self._kernel.trace(self.name, repr(effect))
                world.redis.request(
                    effect,
                    lambda answer: self._if_same(incarnation, self.do, self.step, answer),
                )
            case EpochAcknowledged():
                self._acknowledged = effect.epoch
                self._leases.soon(self.now_ms)
                self._send_heartbeat()
            case LineDropped():
                if self.is_leaving:
                    raise Violation("cache.drained", f"{self.name} left with {effect.key} dirty")
                self._kernel.faults["line_dropped"] += 1
                world.lost(effect.key)
            case Retired():
                self._kernel.trace(self.name, "retired")
                self._kernel.after(1, self._if_same, incarnation, self.do, self.leave)

    def _note(self, message: Message) -> None:
        if isinstance(message, Ask) and isinstance(message.wish, AskWriteBack):
            kind = "cleaned_on_idle" if message.wish.stays else "evicted_dirty"
            self._kernel.faults[kind] += 1
        elif isinstance(message, Reply) and isinstance(message.result, GivenUp):
            kind = "write_moved" if message.result.version == ABSENT else "write_in_doubt"
            self._kernel.faults[kind] += 1

    def _plan_tick(self) -> None:
        at_ms = self.node.next_tick_ms()
        if at_ms is None:
            return
        at_us = max(self._kernel.now_us + 100, self.clock.when_us(at_ms))
        if at_us < self._tick_at_us:
            self._tick_at_us = at_us
            self._kernel.at(at_us, self._tick, self.incarnation, at_us)

    def _tick(self, incarnation: int, at_us: int) -> None:
        if self.incarnation == incarnation and self._tick_at_us == at_us:
            self._tick_at_us = NEVER_US
            self.do(self.step, Tick())

    # --- Clients ------------------------------------------------------------------------------

    def read(self, key: str, done: Callable[[Outcome], None]) -> OpId:
        """A client reads."""
        op = self._op(done)
        self._kernel.trace(self.name, "read", op, key)
        self.world.keys_of_calls[self.name, self.incarnation, op] = key
        self.do(self.step, ClientRead(op, key))
        return op

    def write(self, key: str, change: Change, done: Callable[[Outcome], None]) -> OpId:
        """A client writes."""
        op = self._op(done)
        self._kernel.trace(self.name, "write", op, key, repr(change))
        self.world.keys_of_calls[self.name, self.incarnation, op] = key
        self.do(self.step, ClientWrite(op, key, change))
        return op

    def gone(self, incarnation: int, op: OpId) -> None:
        """The client's patience is at its end."""
        if self.incarnation == incarnation and op in self._answers:
            self._kernel.faults["gave_up"] += 1
            self.do(self.step, ClientGone(op))

    def _op(self, done: Callable[[Outcome], None]) -> OpId:
        self._last_op += 1
        op = OpId(self._last_op)
        self._answers[op] = done
        return op

    # --- The leader ---------------------------------------------------------------------------

    def _heartbeat(self, incarnation: int) -> None:
        if self.incarnation != incarnation or not self.alive:
            return
        self.do(self._send_heartbeat)
        period_us = self._lease_options.heartbeat_ms * US_PER_MS
        self._kernel.after(period_us, self._heartbeat, incarnation)

    def _send_heartbeat(self) -> None:
        if not self.joined:
            return
        request = self._leases.heartbeat(self.server, self._acknowledged, self.now_ms)
        leader = self.world.leader
        self.world.network.send(self.name, LEADER, leader.request, self.name, request)

    def granted(self, grant: LeaseGrant) -> None:
        """The leader has granted a lease."""
        if grant.incarnation == self.server.incarnation:
            self.do(self._take_grant, grant, is_news=True)

    def _take_grant(self, grant: LeaseGrant) -> None:
        self._leases.granted(grant)
        epoch = grant.epoch
        self.step(NodeLease(epoch, self._leases.ends_ms(epoch)))

    def told_ring(self, index: int, ring: RingState, certain: bool) -> None:
        """The log has come to a ring."""
        self.do(self._take_ring, index, ring, certain, is_news=True)

    def _take_ring(self, index: int, ring: RingState, certain: bool) -> None:
        if index > self.ring_index:
            self.ring_index = index
            self.step(RingAdopted(ring, left_have_ended=certain))
