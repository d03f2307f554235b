"""A cluster of cache cores in one place: time, messages and Redis go as the test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

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
    RedisFailed,
    RingAdopted,
    Tick,
)
from distsync_node.cache.invariants import check_node
from distsync_node.cache.messages import Message
from distsync_node.cache.node import CacheNode
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.scripts import GRACE_MS
from distsync_node.cache.tables import LineState
from distsync_node.cache.types import (
    Change,
    Durability,
    Fence,
    Found,
    Missing,
    OpId,
    Outcome,
    PeerId,
    Refused,
    Version,
    Written,
    peer_id,
)
from distsync_node.cluster.ring_state import Epoch, Incarnation, RingState, Server
from distsync_node.raft.types import MemberId
from sim.cache.redis import Redis
from sim.kernel import US_PER_MS, Kernel

START_MS = 1_000_000
LONG_MS = 1 << 40


@dataclass(slots=True)
class Sent:
    """A message on its way."""

    source: PeerId
    target: PeerId
    epoch: Epoch
    message: Message


Filter = Callable[[Sent], bool]


class Cluster:
    """Nodes by name. Messages are delivered in order by `run`, except those held back."""

    def __init__(
        self,
        names: str = "abc",
        *,
        grace_ms: int = GRACE_MS,
        durability_at: Mapping[str, Durability] | None = None,
        **options: Any,
    ) -> None:
        self.options = CacheOptions(**options)
        self._durability_at = durability_at or {}
        self.now_ms = START_MS
        self._kernel = Kernel(0)
        self.redis = Redis(self._kernel, grace_ms)
        self.redis_down = False
        self.held_redis: list[tuple[str, RedisLoad | RedisPut]] = []
        self.hold_redis: Callable[[RedisLoad | RedisPut], bool] = lambda _effect: False
        self.redis_log: list[RedisLoad | RedisPut] = []
        self.nodes: dict[str, CacheNode] = {}
        self.servers: dict[str, Server] = {}
        self.on_way: list[Sent] = []
        self.held: list[Sent] = []
        self.log: list[Sent] = []
        self.holds: list[Filter] = []
        self.loses: list[Filter] = []
        self.leases: dict[str, int] = {}  # node leases end; absent: never
        self.answers: dict[tuple[str, OpId], Outcome] = {}
        self.dropped: list[LineDropped] = []
        self.retired: list[str] = []
        self.paused: set[str] = set()
        self.last_op = 0
        self.ring = RingState(Epoch(0), ())
        for name in names:
            self.boot(name)
        self.change_ring(names)

    # --- Nodes and rings ----------------------------------------------------------------------

    def boot(self, name: str) -> CacheNode:
        """Start a process of that name, with nothing in memory."""
        before = self.servers.get(name)
        incarnation = Incarnation(before.incarnation + 1 if before else 1)
        self.servers[name] = Server(name, MemberId(f"m-{name}"), incarnation)
        durability = self._durability_at.get(name, self.options.durability)
        node = CacheNode(self.servers[name], replace(self.options, durability=durability))
        self.nodes[name] = node
        return node

    def crash(self, name: str) -> None:
        """The process is gone, with what it had in memory."""
        del self.nodes[name]
        self.on_way = [one for one in self.on_way if self.name_of(one.source) != name]

    def change_ring(
        self, names: str, *, left_have_ended: bool = True, tell: str | None = None, run: bool = True
    ) -> None:
        """Commit the next ring and tell these nodes of it."""
        servers = tuple(self.servers[name] for name in sorted(names))
        self.ring = RingState(Epoch(self.ring.epoch + 1), servers)
        for name in self.nodes if tell is None else tell:
            self.adopt(name, left_have_ended=left_have_ended)
        if run:
            self.run()

    def adopt(self, name: str, *, left_have_ended: bool = True) -> None:
        """Tell a node of the ring, and give it a node lease for that."""
        if name in self.nodes:
            self.step(name, RingAdopted(self.ring, left_have_ended=left_have_ended))
            self.lease(name)
            self.step(name, Tick())

    def lease(self, name: str) -> None:
        """Renew a node lease."""
        ends_ms = self.leases.get(name, LONG_MS)
        self.step(name, NodeLease(self.ring.epoch, ends_ms))

    def name_of(self, peer: PeerId) -> str:
        """Return the name of a process."""
        return peer.split("/", 1)[0]

    def peer(self, name: str) -> PeerId:
        """Return the process of a name."""
        return peer_id(self.servers[name])

    def key_at(self, home: str, then: str = "", without: str = "") -> str:
        """Return a key with that home now; and one which moves to `then` `without` that node."""
        for number in range(10_000):
            key = f"key-{number}"
            names = list(self.ring.ring().owners(key))
            rest = [name for name in names if name not in without]
            if names[0] == home and (not then or rest[0] == then):
                return key
        raise AssertionError("no such key")

    # --- Steps --------------------------------------------------------------------------------

    def step(self, name: str, event: Event) -> None:
        """Step a node and take its effects."""
        node = self.nodes[name]
        for effect in node.step(event, self.now_ms):
            self._take(name, effect)
        check_node(node)

    def _take(self, name: str, effect: Effect) -> None:
        match effect:
            case Send():
                sent = Sent(self.peer(name), effect.target, effect.epoch, effect.message)
                self.log.append(sent)
                if any(loses(sent) for loses in self.loses):
                    return
                if any(holds(sent) for holds in self.holds):
                    self.held.append(sent)
                else:
                    self.on_way.append(sent)
            case Answer():
                assert (name, effect.op) not in self.answers, "a call is answered once"
                self.answers[name, effect.op] = effect.outcome
            case RedisLoad() | RedisPut():
                self.redis_log.append(effect)
                self.held_redis.append((name, effect))
            case LineDropped():
                self.dropped.append(effect)
            case Retired():
                self.retired.append(name)
            case EpochAcknowledged():
                pass

    def run(self) -> None:
        """Deliver and answer until nothing happens any more; time stands still."""
        for _ in range(100_000):
            if self._deliver_one() or self._answer_one():
                continue
            return
        raise AssertionError("it never ends")

    def _deliver_one(self) -> bool:
        for index, sent in enumerate(self.on_way):
            if self.name_of(sent.target) not in self.paused:
                del self.on_way[index]
                self.deliver(sent)
                return True
        return False

    def deliver(self, sent: Sent) -> None:
        """Have a message arrive, unless that process is gone."""
        name = self.name_of(sent.target)
        if name in self.nodes and self.peer(name) == sent.target:
            self.step(name, PeerMessage(sent.source, sent.epoch, sent.message))

    def _answer_one(self) -> bool:
        for index, (name, effect) in enumerate(self.held_redis):
            if name in self.nodes and name not in self.paused and not self.hold_redis(effect):
                del self.held_redis[index]
                if self.redis_down:
                    self.step(name, RedisFailed(effect.request, undone=True))
                else:
                    self.step(name, self.redis.apply(effect))
                return True
        return False

    def release(self, count: int | None = None) -> None:
        """Deliver what was held back, in order."""
        self.holds.clear()
        chosen, self.held = self.held[:count], self.held[len(self.held[:count]) :]
        for sent in chosen:
            self.deliver(sent)
        self.run()

    def after(self, ms: int, *, run: bool = True) -> None:
        """Let time pass, with every node ticking."""
        end_ms = self.now_ms + ms
        while self.now_ms < end_ms:
            self.now_ms = min(end_ms, self.now_ms + 20)
            self._kernel.now_us = (self.now_ms - START_MS) * US_PER_MS
            for name in list(self.nodes):
                if name not in self.paused:
                    self.step(name, Tick())
            if run:
                self.run()

    # --- Faults -------------------------------------------------------------------------------

    def hold(self, kind: type, source: str = "", target: str = "") -> None:
        """Hold back messages of a kind."""
        self.holds.append(self._filter(kind, source, target))

    def lose(self, kind: type = object, source: str = "", target: str = "") -> None:
        """Lose messages of a kind."""
        self.loses.append(self._filter(kind, source, target))

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two nodes."""
        self.lose(source=one, target=other)
        self.lose(source=other, target=one)

    def mend(self) -> None:
        """Lose nothing any more."""
        self.loses.clear()

    def _filter(self, kind: type, source: str, target: str) -> Filter:
        def matches(sent: Sent) -> bool:
            return (
                isinstance(sent.message, kind)
                and source in ("", self.name_of(sent.source))
                and target in ("", self.name_of(sent.target))
            )

        return matches

    # --- Clients ------------------------------------------------------------------------------

    def call_read(self, name: str, key: str) -> OpId:
        """Begin a read."""
        self.last_op += 1
        self.step(name, ClientRead(OpId(self.last_op), key))
        return OpId(self.last_op)

    def call_write(self, name: str, key: str, value: str | None, **fields: Any) -> OpId:
        """Begin a write."""
        self.last_op += 1
        change = Change(None if value is None else value.encode(), **fields)
        self.step(name, ClientWrite(OpId(self.last_op), key, change))
        return OpId(self.last_op)

    def give_up(self, name: str, op: OpId) -> None:
        """The client of a call has gone."""
        self.step(name, ClientGone(op))

    def answer(self, name: str, op: OpId) -> Outcome | None:
        """Return what a call was told, if it was."""
        return self.answers.get((name, op))

    def read(self, name: str, key: str) -> str | None:
        """Read, and return the value."""
        op = self.call_read(name, key)
        self.run()
        outcome = self.answer(name, op)
        assert isinstance(outcome, Found | Missing), outcome
        return outcome.value.decode() if isinstance(outcome, Found) else None

    def write(self, name: str, key: str, value: str | None, **fields: Any) -> Version:
        """Write, and return the version."""
        op = self.call_write(name, key, value, **fields)
        self.run()
        outcome = self.answer(name, op)
        assert isinstance(outcome, Written), outcome
        return outcome.version

    def refused(self, name: str, key: str, value: str | None, **fields: Any) -> Refused:
        """Write, and return why it was refused."""
        op = self.call_write(name, key, value, **fields)
        self.run()
        outcome = self.answer(name, op)
        assert isinstance(outcome, Refused), outcome
        return outcome

    def drain(self, name: str) -> None:
        """Begin to drain a node."""
        self.step(name, Drain())
        self.run()

    # --- Looking ------------------------------------------------------------------------------

    def state(self, name: str, key: str) -> str:
        """Return the state of a line: M, E, S, I or a transient one."""
        line = self.nodes[name].lines.held.lru.get(key)
        return (LineState.INVALID if line is None else line.state).value

    def states(self, key: str) -> str:
        """Return the states of a line on all nodes, such as 'a:M b:I c:I'."""
        return " ".join(f"{name}:{self.state(name, key)}" for name in sorted(self.nodes))

    def in_redis(self, key: str) -> str | None:
        """Return the value that Redis has."""
        known = self.redis.keys.get(key)
        return None if known is None or known.value is None else known.value.decode()

    def is_marked(self, key: str) -> bool:
        """Return whether Redis says that it has not the newest value."""
        known = self.redis.keys.get(key)
        return known is not None and known.mark is not None

    def sent(self, kind: type) -> list[Sent]:
        """Return all messages of a kind that were sent so far."""
        return [one for one in self.log if isinstance(one.message, kind)]

    def loads(self, key: str) -> int:
        """Return how often Redis was asked to read a key."""
        return sum(isinstance(one, RedisLoad) and one.key == key for one in self.redis_log)


def fence(lock: str, token: int, *, verified: bool = True) -> Fence:
    """A fence."""
    return Fence(lock, token, verified)
