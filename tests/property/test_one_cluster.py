"""Empty nodes that find each other found one cluster, whatever is lost, late or wiped meanwhile.

Real replicas and the real decision. Answers to probes may be old when they are acted upon, calls
may come late, in any order or never, and disks are lost at any moment. A cluster *works* once more
than half of its founders belong to it and live at the same time. None ever begins to while a member
of another one that has worked still lives: only when every disk was lost may there be a second.
"""

from __future__ import annotations

import random

from distsync_node.cluster.formation import CreateCluster, Identity, decide
from distsync_node.raft.types import Member, MemberId, RaftOptions
from distsync_node.replica.core import Replica
from distsync_node.replica.types import (
    Bootstrap,
    Initialise,
    ReplicaEvent,
    ReplicaOptions,
    StorageInitialised,
)

RUNS = 1_500
ACTIONS = 60


class Founding:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.names = tuple(f"n{number}" for number in range(1, self.rng.choice((3, 4, 5)) + 1))
        self.minted = 0
        self.replicas: dict[str, Replica] = {}
        self.to_disk: set[str] = set()  # a genesis is being written there
        self.answers: dict[str, Identity | None] = {}
        self.calls: list[tuple[str, MemberId, str, tuple[Member, ...]]] = []
        self.clusters: dict[str, tuple[Member, ...]] = {}
        self.working: set[str] = set()
        self.rivals: set[str] = set()
        self.wipes = 0
        for name in self.names:
            self.mint(name)

    def mint(self, name: str) -> None:
        self.minted += 1
        self.to_disk.discard(name)
        self.replicas[name] = Replica(
            MemberId(f"{name}-{self.minted}"),
            options=ReplicaOptions(),
            raft_options=RaftOptions(),
            rng=random.Random(self.minted),
            now_ms=0,
        )

    def identity(self, name: str) -> Identity:
        replica = self.replicas[name]
        known = tuple(member.id for member in replica.configuration.members)
        return Identity(
            member=Member(id=replica.member_id, name=name, peer_url=f"http://{name}"),
            uninitialised=replica.state == "uninitialised",
            cluster_id=replica.cluster_id or None,
            known_ids=known,
        )

    def step(self, name: str, event: ReplicaEvent) -> None:
        effects = self.replicas[name].step(event)
        if any(isinstance(effect, Initialise) for effect in effects):
            self.to_disk.add(name)

    # --- What may happen ----------------------------------------------------------------------

    def ask(self) -> None:
        """An answer reaches the first node, to be used now or later."""
        name = self.rng.choice(self.names[1:])
        self.answers[name] = self.identity(name)

    def act(self) -> None:
        first = self.names[0]
        if self.replicas[first].state != "uninitialised":
            return
        others = {name: self.answers.get(name) for name in self.names[1:]}
        decision = decide(self.identity(first), self.names, others, may_create=True)
        if not isinstance(decision, CreateCluster):
            return
        cluster_id = f"k{len(self.clusters)}"
        self.clusters[cluster_id] = decision.members
        for member in decision.members:
            call = (member.name, member.id, cluster_id, decision.members)
            self.calls.append(call)
        self.deliver(first)

    def deliver(self, to: str | None = None) -> None:
        calls = [call for call in self.calls if to in (None, call[0])]
        if not calls:
            return
        call = self.rng.choice(calls)
        self.calls.remove(call)
        name, member_id, cluster_id, members = call
        if self.replicas[name].member_id == member_id:
            self.step(name, Bootstrap(now_ms=0, ref=1, cluster_id=cluster_id, members=members))

    def lose_a_call(self) -> None:
        if self.calls:
            self.calls.pop(self.rng.randrange(len(self.calls)))

    def write(self) -> None:
        if self.to_disk:
            name = self.rng.choice(sorted(self.to_disk))
            self.to_disk.discard(name)
            self.step(name, StorageInitialised(now_ms=0))

    def wipe(self) -> None:
        name = self.rng.choice(self.names)
        if name == self.names[0]:
            self.answers = {}  # they were in its memory
        self.wipes += 1
        self.mint(name)

    def run(self) -> None:
        actions = [self.ask] * 8 + [self.act] * 3 + [self.deliver] * 3 + [self.write] * 4
        actions += [self.lose_a_call, self.wipe]
        for _ in range(ACTIONS):
            self.rng.choice(actions)()
            self.look()

    # --- What must never be ------------------------------------------------------------------

    def look(self) -> None:
        for cluster_id, founders in self.clusters.items():
            ids = {member.id for member in founders}
            there = [
                replica
                for replica in self.replicas.values()
                if replica.cluster_id == cluster_id and replica.member_id in ids
            ]
            if cluster_id not in self.working and len(there) > len(founders) // 2:
                living = {replica.cluster_id for replica in self.replicas.values()}
                self.rivals |= living & self.working
                self.working.add(cluster_id)


def test_no_cluster_works_beside_another() -> None:
    worked = wipes = competing = 0
    for seed in range(RUNS):
        founding = Founding(seed)
        founding.run()
        assert not founding.rivals, f"seed {seed}: {founding.rivals}"
        worked += len(founding.working)
        wipes += founding.wipes
        competing += len(founding.clusters) > 1
    assert worked > RUNS // 4
    assert wipes > RUNS
    assert competing > RUNS // 20  # else the runs say nothing
