"""A few replicas on a perfect network with instant disks, for tests of what one replica decides.

The simulator (tests/sim) is where networks and disks misbehave; here nodes can only be cut off.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from typing import Any

from distsync_node.locks.commands import Acquire, LockCommand, LockMode, RequestKey
from distsync_node.raft.types import Member, MemberId, Persist, RaftOptions, Send
from distsync_node.replica.core import Replica
from distsync_node.replica.types import (
    AnswerEnvelope,
    Bootstrap,
    Envelope,
    Flush,
    Initialise,
    ReceiveAnswer,
    ReceiveEnvelope,
    ReplicaEffect,
    ReplicaEvent,
    ReplicaOptions,
    SendPeer,
    StorageInitialised,
    StoragePersisted,
    Submit,
    Wake,
)

HOP_MS = 1
DISK_MS = 1


def acquire(
    name: str, owner: str, *, request: str, ttl_ms: int = 1_000, wait_ms: int = 0
) -> Acquire:
    return Acquire(
        key=RequestKey(client="c", request=request),
        digest=b"12345678",
        names=(name,),
        owner=owner,
        mode=LockMode.EXCLUSIVE,
        ttl_ms=ttl_ms,
        wait_ms=wait_ms,
    )


class Pump:
    """Replicas `m1`..`mN`, named `n1`..`nN`, and the one clock they share."""

    def __init__(
        self,
        nodes: int = 3,
        options: ReplicaOptions | None = None,
        raft_options: RaftOptions | None = None,
    ) -> None:
        self.now_ms = 1_000
        self.options = options or ReplicaOptions()
        self.raft_options = raft_options or RaftOptions()
        self.members = tuple(
            Member(id=MemberId(f"m{i}"), name=f"n{i}", peer_url=f"http://n{i}")
            for i in range(1, nodes + 1)
        )
        self.replicas: dict[MemberId, Replica] = {}
        self.cut: set[MemberId] = set()
        self.effects: list[tuple[int, MemberId, ReplicaEffect]] = []
        self._events: list[tuple[int, int, MemberId, Callable[[int], ReplicaEvent]]] = []
        self._sequence = 0
        for number, member in enumerate(self.members):
            self.start(member.id, seed=number)

    def start(self, member_id: MemberId, *, seed: int) -> Replica:
        """Add an empty replica."""
        self.replicas[member_id] = Replica(
            member_id,
            options=self.options,
            raft_options=self.raft_options,
            rng=random.Random(seed),
            now_ms=self.now_ms,
        )
        return self.replicas[member_id]

    def form(self, *, within_ms: int = 3_000) -> Replica:
        """Bootstrap every replica and run until one leads."""
        for member in self.members:
            self.step(
                member.id,
                Bootstrap(now_ms=self.now_ms, ref=1, cluster_id="k", members=self.members),
            )
        self.run(within_ms)
        return self.leader

    @property
    def leader(self) -> Replica:
        """The reachable leader that may propose."""
        (leader,) = (
            replica
            for replica in self.replicas.values()
            if replica.is_ready_leader and replica.member_id not in self.cut
        )
        return leader

    def submit(self, ref: int, command: LockCommand, replica: Replica | None = None) -> None:
        """Give a command to the leader and propose it."""
        target = replica or self.leader
        self.step(target.member_id, Submit(now_ms=self.now_ms, ref=ref, command=command))
        self.step(target.member_id, Flush(now_ms=self.now_ms))

    def of_kind(self, kind: type[Any], ref: int | None = None) -> list[Any]:
        """Return the effects of that kind so far (and of that ref)."""
        return [
            effect
            for _, _, effect in self.effects
            if isinstance(effect, kind) and (ref is None or getattr(effect, "ref", None) == ref)
        ]

    def step(self, member_id: MemberId, event: ReplicaEvent) -> None:
        """Step one replica now and schedule what follows."""
        replica = self.replicas[member_id]
        for effect in replica.step(event):
            self._execute(replica, event, effect)
        replica.check_invariants()

    def lose_everything_under_way(self) -> None:
        """Lose what the network and the disks have not delivered yet."""
        self._events.clear()

    def run(self, duration_ms: int) -> None:
        """Let time pass."""
        until_ms = self.now_ms + duration_ms
        while True:
            wakes = [
                (max(deadline_ms, self.now_ms), member_id)
                for member_id, replica in self.replicas.items()
                if (deadline_ms := replica.next_deadline_ms()) is not None
            ]
            at_ms = min(
                [at for at, _ in wakes] + [at for at, *_ in self._events[:1]], default=until_ms
            )
            if at_ms > until_ms:
                self.now_ms = until_ms
                return
            self.now_ms = at_ms
            if self._events and self._events[0][0] <= at_ms:
                _, _, member_id, make = heapq.heappop(self._events)
                self.step(member_id, make(self.now_ms))
            elif not wakes:
                return
            else:
                self.step(min(wakes)[1], Wake(now_ms=self.now_ms))

    def _execute(self, replica: Replica, event: ReplicaEvent, effect: ReplicaEffect) -> None:
        member_id = replica.member_id
        match effect:
            case Send() | SendPeer():
                self._send(replica.envelope(effect.to, (effect.message,)))
            case Persist():

                def persisted(now_ms: int) -> ReplicaEvent:
                    for send in effect.then:
                        self._send(replica.envelope(send.to, (send.message,)))
                    return StoragePersisted(now_ms=now_ms, seq=effect.seq)

                self._later(DISK_MS, member_id, persisted)
            case Initialise():
                self._later(DISK_MS, member_id, lambda now_ms: StorageInitialised(now_ms=now_ms))
            case AnswerEnvelope():
                if isinstance(event, ReceiveEnvelope):
                    sender, answer = event.envelope.sender, effect.answer
                    if sender in self.replicas and not {sender, member_id} & self.cut:
                        self._later(
                            HOP_MS,
                            sender,
                            lambda now_ms: ReceiveAnswer(now_ms=now_ms, answer=answer),
                        )
            case _:
                self.effects.append((self.now_ms, member_id, effect))

    def _send(self, envelope: Envelope) -> None:
        if envelope.to in self.replicas and not {envelope.sender, envelope.to} & self.cut:
            self._later(
                HOP_MS,
                envelope.to,
                lambda now_ms: ReceiveEnvelope(now_ms=now_ms, envelope=envelope),
            )

    def _later(
        self, delay_ms: int, member_id: MemberId, make: Callable[[int], ReplicaEvent]
    ) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (self.now_ms + delay_ms, self._sequence, member_id, make))
