"""How empty nodes find each other: the node's own decision, on lost and delayed messages.

Each node probes the others and does what `cluster.formation.decide` says. The first-listed may
create the cluster; everybody else waits, or joins one that exists. In some runs every creation uses
the same cluster id (as an operator would that names it after its resource), in others a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.cluster.formation import (
    CreateCluster,
    Identity,
    JoinCluster,
    Wait,
    decide,
)
from distsync_node.raft.types import ConfigOperation, Member
from distsync_node.replica.types import Bootstrap, ChangeMembership
from sim.host import FinalEffect, Host
from sim.kernel import US_PER_MS

if TYPE_CHECKING:
    from sim.world import World

PROBE_US = 250 * US_PER_MS


def member_of(host: Host) -> Member:
    """Return a host as the member it would be."""
    return Member(id=host.member_id, name=host.name, peer_url=host.url)


def identity_of(world: World, host: Host) -> Identity:
    """Return what a host says of itself."""
    replica = host.replica
    configuration = replica.configuration
    leader = configuration.member(replica.leader) if replica.leader is not None else None
    return Identity(
        member=member_of(host),
        uninitialised=replica.state == "uninitialised",
        cluster_id=replica.cluster_id or None,
        known_ids=tuple(member.id for member in configuration.members),
        leader=leader,
    )


class Founder:
    """What an empty node does until it belongs to a cluster."""

    def __init__(self, world: World, host: Host, listed: tuple[str, ...]) -> None:
        self._world = world
        self._kernel = world.kernel
        self._host = host
        self._listed = listed
        self._rng = world.kernel.rng(f"founder/{host.name}")
        self._round = 0
        self._answers: dict[str, Identity] = {}

    def start(self) -> None:
        """Begin to look around; goes on for the whole run."""
        self._kernel.after(self._rng.randint(0, 100) * US_PER_MS, self._look)

    def _look(self) -> None:
        self._round += 1
        self._answers = {}
        host = self._host
        if host.alive and not host.paused and host.replica.state == "uninitialised":
            for name in self._world.hosts:
                if name != host.name:
                    self._world.network.send(host.name, name, self._asked, name, self._round)
            self._kernel.after(PROBE_US, self._decide, self._round, host.incarnation)
        self._kernel.after(PROBE_US + self._rng.randint(50, 300) * US_PER_MS, self._look)

    def _asked(self, name: str, number: int) -> None:
        other = self._world.hosts[name]
        if other.alive and not other.paused and other.stopped is None:
            answer = identity_of(self._world, other)
            self._world.network.send(name, self._host.name, self._heard, name, number, answer)

    def _heard(self, name: str, number: int, answer: Identity) -> None:
        if number == self._round:
            self._answers[name] = answer

    def _decide(self, number: int, incarnation: int) -> None:
        host = self._host
        if number != self._round or incarnation != host.incarnation or host.paused:
            return
        if host.replica.state != "uninitialised":
            return
        decision = decide(
            identity_of(self._world, host),
            self._listed,
            {name: self._answers.get(name) for name in self._world.hosts if name != host.name},
            may_create=self._world.forming,
        )
        match decision:
            case CreateCluster(members=members):
                self._create(members)
            case JoinCluster(leader=leader):
                self._join(leader)
            case Wait():
                pass

    def _create(self, members: tuple[Member, ...]) -> None:
        world = self._world
        cluster_id = world.new_cluster_id()
        world.founder_lists.add(tuple(member.id for member in members))
        self._kernel.faults["genesis"] += 1
        self._kernel.trace(self._host.name, "create", cluster_id, [one.id for one in members])
        for member in members:
            name = member.peer_url.removeprefix("http://")
            target = world.hosts[name]
            if target is self._host:
                self._bootstrap(target, member, cluster_id, members)
            else:
                # A connection may be slow to come about; then much else happens before.
                slow = self._rng.random() < 0.6
                self._kernel.after(
                    self._rng.randint(0, 4_000) * US_PER_MS if slow else 0,
                    world.network.send,
                    self._host.name,
                    name,
                    self._bootstrap,
                    target,
                    member,
                    cluster_id,
                    members,
                )

    def _bootstrap(
        self, target: Host, member: Member, cluster_id: str, members: tuple[Member, ...]
    ) -> None:
        def make_event(now_ms: int, ref: int) -> Bootstrap:
            return Bootstrap(now_ms=now_ms, ref=ref, cluster_id=cluster_id, members=members)

        # The call of an operator names an address only; that of a node names the member it is for.
        if target.alive and (target.member_id == member.id or self._world.names_addresses):
            target.call(make_event, _ignore)

    def _join(self, leader: Member) -> None:
        own = member_of(self._host)
        name = leader.peer_url.removeprefix("http://")

        def arrive() -> None:
            target = self._world.hosts[name]
            if target.alive and target.member_id == leader.id:
                target.call(make_event, _ignore)

        def make_event(now_ms: int, ref: int) -> ChangeMembership:
            return ChangeMembership(
                now_ms=now_ms, ref=ref, operation=ConfigOperation.ADD_LEARNER, member=own
            )

        self._kernel.faults["join_asked"] += 1
        self._world.network.send(self._host.name, name, arrive)


def _ignore(_: FinalEffect) -> None:
    """Nobody waits for this answer: the state of the node says what became of it."""
