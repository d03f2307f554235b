"""Who changes the membership: an operator that asks the leader, one change after the other.

It follows the rule of the real one and never takes a step that could cost the quorum: nothing is
removed while a voter's disk is lost, and a disk is lost only while a quorum does not need it.
"""

from __future__ import annotations

from distsync_node.raft.types import ConfigOperation, LogIndex, Member
from distsync_node.replica.types import (
    AdminDone,
    ChangeMembership,
    Rejected,
    ReplicaEvent,
    Transfer,
)
from sim.client import Client, Script
from sim.forming import member_of
from sim.kernel import US_PER_MS

MOST_HOSTS = 6


class Operator(Client):
    """A client whose scripts change the cluster."""

    def change(
        self,
        operation: ConfigOperation,
        member: Member,
        expected_index: LogIndex | None = None,
    ) -> Script:
        """Ask for a change until it is answered; returns whether it took effect."""

        def make_event(now_ms: int, ref: int) -> ReplicaEvent:
            return ChangeMembership(
                now_ms=now_ms,
                ref=ref,
                operation=operation,
                member=member,
                expected_config_index=expected_index,
            )

        for _ in range(20):
            attempt = self.open(self.pick_host(), make_event)
            effect = yield attempt, 700 * US_PER_MS
            if isinstance(effect, AdminDone):
                self.kernel.trace(self.name, operation.name, member.id, "done")
                return True
            if isinstance(effect, Rejected):
                self._learn(effect)
                if effect.reason.name in ("CONFIG_CONFLICT", "NAME_TAKEN"):
                    return False
            else:
                self.leader = None
            yield self.rng.randint(20, 150) * US_PER_MS
        return False

    def act(self) -> Script:
        """Do one thing to the membership."""
        world = self.world
        configuration = world.raft.configuration
        members = configuration.members
        if not members:
            return
        others = [member for member in members if member.id not in world.lost_ids]
        expected = configuration.index if self.rng.random() < 0.3 else None
        match self.rng.choice(("add", "add", "remove", "remove", "promote", "demote", "update")):
            case "add" if len(world.hosts) < MOST_HOSTS:
                host = world.add_host()
                yield from self.change(ConfigOperation.ADD_LEARNER, member_of(host), expected)
            case "remove" if len(others) > 3 and not world.lost_ids:
                gone = self._choose_leaver(others)
                world.leaving_ids.add(gone.id)
                yield from self.change(ConfigOperation.REMOVE, gone, expected)
            case "promote" if configuration.learners:
                chosen = self.rng.choice([member for member in members if not member.voter])
                yield from self.change(ConfigOperation.PROMOTE, chosen, expected)
            case "demote" if len(configuration.voters) > 3 and not world.lost_ids:
                chosen = self.rng.choice([member for member in members if member.voter])
                yield from self.change(ConfigOperation.DEMOTE, chosen, expected)
            case "update":
                chosen = self.rng.choice(members)
                moved = Member(
                    id=chosen.id,
                    name=chosen.name,
                    peer_url=chosen.peer_url,
                    client_url=f"http://c{self.rng.randint(0, 9)}",
                )
                yield from self.change(ConfigOperation.UPDATE, moved, expected)
            case _:
                yield from self.transfer()

    def _choose_leaver(self, members: list[Member]) -> Member:
        leader = self.world.leader()
        for member in members:
            if leader is not None and member.id == leader.member_id and self.rng.random() < 0.4:
                self.kernel.faults["leader_removed"] += 1
                return member
        return self.rng.choice(members)

    def transfer(self) -> Script:
        """Have leadership handed over, to somebody or to the best."""
        leader = self.world.leader()
        if leader is None:
            return
        voters = self.world.raft.configuration.voters
        target = self.rng.choice((None, *voters))
        self.kernel.faults["transfer"] += 1
        self.kernel.trace(self.name, "transfer", leader.name, target)
        leader.tell(lambda now_ms: Transfer(now_ms=now_ms, target=target))
        yield 50 * US_PER_MS
