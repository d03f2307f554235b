"""A model of Kubernetes and of the nodes in it, on which a plan is carried out step by step.

It is what `plan` is checked against: pods start and die, nodes join, catch up and lead, the leader
promotes and demotes as the real one does. `step` lets one thing happen by itself; `execute` does
one action, or a part of it, as when the operator dies. Rules that must never be broken are checked
at every action; see `check`.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any, assert_never

from distsync_operator import names
from distsync_operator.model import (
    Action,
    AddMember,
    Apply,
    Archive,
    Bootstrap,
    Claim,
    Delete,
    Desired,
    Drain,
    ForgetReplace,
    MarkReplacing,
    Member,
    Node,
    Observed,
    Pod,
    PromoteMember,
    RemoveMember,
    ResizeClaim,
    StatefulSet,
    Transfer,
)
from distsync_operator.plan.situation import quorum, wanted_voters
from distsync_operator.resources.common import digest

REDIS_URL = "redis://model"


@dataclass
class Disk:
    """A volume; what is on it outlives pods."""

    claim_uid: str
    size: str
    member_id: str = ""
    cluster_id: str = ""
    removed: bool = False
    replacing: bool = False
    terminating: bool = False


@dataclass
class Machine:
    """A pod and the process in it."""

    uid: str
    revision: str
    running: bool = False
    ready: bool = False
    heard: bool = False  # a leader, since it started
    serving: bool = False  # its part of the ring
    draining: bool = False
    terminating: bool = False


@dataclass
class Raft:
    """The configuration of a cluster: who is a member; `joined` have what is committed."""

    cluster_id: str
    members: list[Member]
    index: int = 1
    leader: str = ""
    term: int = 1
    removed: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)


class ModelCluster:
    """The world of one resource; `wish` is what is wanted, and may be changed at any time."""

    def __init__(self, wish: Desired, seed: int) -> None:
        self.wish = wish
        self.rng = random.Random(seed)
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.pods: dict[int, Machine] = {}
        self.disks: dict[int, Disk] = {}
        self.rafts: dict[str, Raft] = {}
        self.ring: set[str] = set()
        self.ring_epoch = 0
        self.broken: set[str] = set()  # revisions whose pods never start
        self.log: list[str] = []
        self._numbers = itertools.count(1)

    # --- What the operator sees -----------------------------------------------------------------

    def observe(self) -> Observed:
        """Look at everything."""
        body = self.objects.get(("StatefulSet", "demo"))
        redis = self.objects.get(("StatefulSet", "demo-redis"))
        return Observed(
            objects=dict(self.objects),
            stateful_set=_set(body, self.revision) if body else None,
            redis_set=_set(redis, "r") if redis else None,
            pods=tuple(self._pod(ordinal) for ordinal in sorted(self.pods)),
            claims=tuple(
                Claim(
                    name=names.claim("demo", ordinal),
                    ordinal=ordinal,
                    size=disk.size,
                    uid=disk.claim_uid,
                    terminating=disk.terminating,
                    replacing=disk.replacing,
                )
                for ordinal, disk in sorted(self.disks.items())
            ),
            nodes={f"demo-{ordinal}": self._node(ordinal) for ordinal in self.pods},
            redis_url=REDIS_URL if ("Secret", "demo-redis") in self.objects else None,
            ring=tuple(sorted(self.ring)),
        )

    @property
    def revision(self) -> str:
        """What the StatefulSet's template hashes to."""
        body = self.objects.get(("StatefulSet", "demo"))
        return digest(body["spec"]["template"]) if body else ""

    @property
    def replicas(self) -> int:
        """How many pods the StatefulSet wants."""
        body = self.objects.get(("StatefulSet", "demo"))
        return body["spec"]["replicas"] if body else 0

    def _pod(self, ordinal: int) -> Pod:
        machine = self.pods[ordinal]
        return Pod(
            name=f"demo-{ordinal}",
            ordinal=ordinal,
            uid=machine.uid,
            revision=machine.revision,
            ready=machine.ready and machine.running,
            terminating=machine.terminating,
        )

    def _node(self, ordinal: int) -> Node:
        machine, disk = self.pods[ordinal], self.disks.get(ordinal)
        if not machine.running or disk is None:
            return Node(state="silent")
        if disk.removed:
            return Node(state="removed", member_id=disk.member_id, cluster_id=disk.cluster_id)
        if not disk.cluster_id:
            return Node(state="uninitialised", member_id=disk.member_id)
        raft = self.rafts[disk.cluster_id]
        if disk.member_id not in raft.joined:
            return Node(state="joining", member_id=disk.member_id, cluster_id=disk.cluster_id)
        leads = raft.leader == disk.member_id
        return Node(
            state="member",
            member_id=disk.member_id,
            cluster_id=disk.cluster_id,
            role="leader" if leads else "follower",
            leader=raft.leader,
            term=raft.term,
            config_index=raft.index,
            members=tuple(
                self._as_seen(raft, member) if leads else member for member in raft.members
            ),
            draining=machine.draining,
            serving=machine.serving,
            ring_epoch=self.ring_epoch,
        )

    def _as_seen(self, raft: Raft, member: Member) -> Member:
        return replace(
            member,
            silent_ms=0 if self.runs(member.id) else 60_000,
            caught_up=member.id in raft.joined,
        )

    # --- Who runs -------------------------------------------------------------------------------

    def ordinal_of(self, member_id: str) -> int | None:
        """Where a member's disk is."""
        return next((o for o, d in self.disks.items() if d.member_id == member_id), None)

    def runs(self, member_id: str) -> bool:
        """Whether the member's process runs."""
        ordinal = self.ordinal_of(member_id)
        return ordinal is not None and ordinal in self.pods and self.pods[ordinal].running

    def alive(self, raft: Raft) -> list[Member]:
        """The voters that run and have joined."""
        return [m for m in raft.members if m.voter and m.id in raft.joined and self.runs(m.id)]

    def has_quorum(self, raft: Raft) -> bool:
        """Whether enough voters run."""
        voters = [member for member in raft.members if member.voter]
        return len(self.alive(raft)) >= quorum(len(voters))

    # --- What the operator does -----------------------------------------------------------------

    def execute(self, action: Action, *, partly: bool = False) -> None:
        """Do an action; `partly` reaches only some of those that a call to several is for."""
        self.log.append(f"{'part of ' if partly else ''}{describe(action)}")
        before = {raft.cluster_id: self.has_quorum(raft) for raft in self.rafts.values()}
        single = {
            raft.cluster_id
            for raft in self.rafts.values()
            if len([member for member in raft.members if member.voter]) == 1
        }
        self._execute(action, partly)
        for raft in self.rafts.values():
            if before.get(raft.cluster_id) and raft.cluster_id not in single:
                assert self.has_quorum(raft), self.tell("an action took the quorum")
        assert len(self.rafts) <= 1, self.tell("two clusters were created")

    def _execute(self, action: Action, partly: bool) -> None:
        match action:
            case Apply(manifest=manifest):
                key = (manifest["kind"], manifest["metadata"]["name"])
                known = self.objects.get(key, {"metadata": {}})
                uid = known["metadata"].get("uid") or self._uid("object")
                metadata = {**manifest["metadata"], "uid": uid}
                self.objects[key] = {**manifest, "metadata": metadata}
            case Delete():
                self._delete(action)
            case ResizeClaim(name=name, size=size):
                self.disks[names.claim_ordinal("demo", name) or 0].size = size
            case MarkReplacing(claim=name):
                self.disks[names.claim_ordinal("demo", name) or 0].replacing = True
            case ForgetReplace():
                annotations = dict(self.wish.cluster.annotations)
                annotations.pop(names.REPLACE_ANNOTATION, None)
                self.change_wish(annotations=annotations)
            case Bootstrap():
                self._bootstrap(action, partly)
            case Drain(pod=pod):
                machine = self.pods.get(ordinal_of(pod))
                if machine is not None and machine.running:
                    machine.draining = True
            case Archive(pod=pod):
                ordinal = ordinal_of(pod)
                disk = self.disks.get(ordinal)
                if disk is not None and disk.removed:
                    self.disks[ordinal] = replace(
                        disk, member_id=self._uid("id"), cluster_id="", removed=False
                    )
                    self.pods[ordinal].running = False
            case AddMember() | PromoteMember() | RemoveMember() | Transfer():
                self._membership(action)
            case _:
                assert_never(action)

    def _delete(self, action: Delete) -> None:
        if action.kind == "Pod":
            machine = self.pods.get(ordinal_of(action.name))
            if machine is not None and machine.uid == action.uid:
                machine.terminating = True
                machine.ready = machine.running = False
        elif action.kind == "PersistentVolumeClaim":
            disk = self.disks.get(names.claim_ordinal("demo", action.name) or 0)
            if disk is not None and disk.claim_uid == action.uid:
                disk.terminating = True
        else:
            self.objects.pop((action.kind, action.name), None)

    def _bootstrap(self, action: Bootstrap, partly: bool) -> None:
        told = action.pods[: self.rng.randint(1, len(action.pods)) if partly else None]
        raft: Raft | None = None
        for member, pod in zip(action.members, action.pods, strict=True):
            disk = self.disks.get(ordinal_of(pod))
            if pod not in told or disk is None or disk.cluster_id or disk.member_id != member.id:
                continue
            if raft is None:
                voters = wanted_voters(len(action.members), 7)
                members = [
                    replace(one, voter=position < voters)
                    for position, one in enumerate(action.members)
                ]
                raft = self.rafts.setdefault(action.cluster_id, Raft(action.cluster_id, members))
            disk.cluster_id = action.cluster_id
            raft.joined.add(member.id)

    def _membership(self, action: AddMember | PromoteMember | RemoveMember | Transfer) -> None:
        disk = self.disks.get(ordinal_of(action.via))
        raft = self.rafts.get(disk.cluster_id) if disk is not None else None
        if raft is None or not self.has_quorum(raft):
            return
        member = action.member
        if isinstance(action, Transfer):
            if member in self.alive(raft) or any(m.id == member.id for m in self.alive(raft)):
                raft.leader, raft.term = member.id, raft.term + 1
            return
        if action.config_index != raft.index:
            return
        known = next((one for one in raft.members if one.id == member.id), None)
        match action:
            case AddMember() if known is None:
                same_name = [one for one in raft.members if one.name == member.name]
                if not any(self.runs(one.id) for one in same_name):
                    raft.members.append(replace(member, voter=False))
                    raft.index += 1
            case PromoteMember() if known is not None:
                self._set_voter(raft, known, voter=True)
            case RemoveMember() if known is not None:
                self._remove(raft, known)
            case _:
                pass

    def _set_voter(self, raft: Raft, member: Member, *, voter: bool) -> None:
        raft.members[raft.members.index(member)] = replace(member, voter=voter)
        raft.index += 1

    def _remove(self, raft: Raft, member: Member) -> None:
        raft.members.remove(member)
        raft.removed.add(member.id)
        raft.joined.discard(member.id)
        raft.index += 1
        self.ring.discard(member.name)
        self.ring_epoch += 1
        if raft.leader == member.id:
            raft.leader = ""

    # --- What happens by itself -----------------------------------------------------------------

    def step(self) -> None:
        """Let one thing happen that is due."""
        due = [
            *self._due_pods(),
            *(lambda raft=raft: self._raft_step(raft) for raft in self.rafts.values()),
        ]
        if due:
            self.rng.choice(due)()

    def settle(self) -> None:
        """Let all happen that happens without the operator."""
        for _ in range(400):
            self.step()

    def _due_pods(self) -> list[Any]:
        due: list[Any] = []
        missing = [ordinal for ordinal in range(self.replicas) if ordinal not in self.pods]
        due += [lambda o=ordinal: self._create(o) for ordinal in missing]
        for ordinal, machine in self.pods.items():
            if machine.terminating:
                due.append(lambda o=ordinal: self._end(o))
            elif ordinal >= self.replicas and ("StatefulSet", "demo") in self.objects:
                due.append(lambda m=machine: self._terminate(m))
            else:
                due.append(lambda o=ordinal: self._live(o))
        for ordinal, disk in self.disks.items():
            if disk.terminating and ordinal not in self.pods:
                due.append(lambda o=ordinal: self.disks.pop(o, None))
        return due

    def _create(self, ordinal: int) -> None:
        disk = self.disks.get(ordinal)
        if disk is not None and disk.terminating:
            return
        if disk is None:
            size = self.objects["StatefulSet", "demo"]["spec"]["volumeClaimTemplates"][0]["spec"]
            self.disks[ordinal] = Disk(
                claim_uid=self._uid("claim"),
                size=size["resources"]["requests"]["storage"],
                member_id=self._uid("id"),
            )
        self.pods[ordinal] = Machine(uid=self._uid("pod"), revision=self.revision)

    def _terminate(self, machine: Machine) -> None:
        machine.terminating = True
        machine.ready = machine.running = False

    def _end(self, ordinal: int) -> None:
        self.pods.pop(ordinal, None)
        keeps = self.wish.cluster.spec.storage.retention.when_scaled == "Retain"
        is_set = ("StatefulSet", "demo") in self.objects
        if is_set and ordinal >= self.replicas and ordinal in self.disks and not keeps:
            self.disks[ordinal].terminating = True

    def _live(self, ordinal: int) -> None:
        machine, disk = self.pods[ordinal], self.disks[ordinal]
        if not machine.running:
            if machine.revision not in self.broken:
                self.pods[ordinal] = Machine(machine.uid, machine.revision, running=True)
            return
        raft = self.rafts.get(disk.cluster_id)
        name = f"demo-{ordinal}"
        if raft is not None and disk.member_id in raft.removed:
            disk.removed = True
        has_leader = raft is not None and disk.member_id in raft.joined and bool(raft.leader)
        machine.heard = machine.heard or has_leader
        machine.ready = machine.heard and not disk.removed and not machine.draining
        if machine.draining and name in self.ring:
            self.ring.discard(name)
            self.ring_epoch += 1
        elif machine.ready and has_leader and not machine.serving:
            self.ring.add(name)  # in the place of the process before it, if that is still there
            self.ring_epoch += 1
        machine.serving = has_leader and machine.ready and name in self.ring

    def _raft_step(self, raft: Raft) -> None:
        for member in raft.members:  # the leader's, or a candidate's, messages arrive
            ordinal = self.ordinal_of(member.id)
            if ordinal is not None and self.runs(member.id) and raft.joined:
                self.disks[ordinal].cluster_id = raft.cluster_id
                if raft.leader or raft.index == 1:
                    raft.joined.add(member.id)
        if raft.leader and (not self.runs(raft.leader) or not self.has_quorum(raft)):
            raft.leader = ""
        if not raft.leader:
            if self.has_quorum(raft):
                raft.leader = self.rng.choice(self.alive(raft)).id
                raft.term += 1
            return
        self._policy(raft)

    def _policy(self, raft: Raft) -> None:
        """What a leader does by itself: take over names, promote, demote; see the node's policy."""
        by_name: dict[str, list[Member]] = {}
        for member in raft.members:
            by_name.setdefault(member.name, []).append(member)
        for same in by_name.values():
            for old in same[:-1]:
                if same[-1].id in raft.joined and not self.runs(old.id) and old.id != raft.leader:
                    self._remove(raft, old)
                    return
        wanted = wanted_voters(len(by_name), self.wish.cluster.spec.raft.voters)
        voters = [member for member in raft.members if member.voter]
        if len(voters) < wanted:
            for member in sorted(raft.members, key=lambda one: one.name):
                single = len(by_name[member.name]) == 1
                if (
                    not member.voter
                    and member.id in raft.joined
                    and self.runs(member.id)
                    and single
                ):
                    self._set_voter(raft, member, voter=True)
                    return
        if len(voters) > wanted_voters(len(raft.members), self.wish.cluster.spec.raft.voters):
            others = [member for member in voters if member.id != raft.leader]
            chosen = max(others, key=lambda one: (not self.runs(one.id), ordinal_of(one.name)))
            self._set_voter(raft, chosen, voter=False)

    # --- What goes wrong ------------------------------------------------------------------------

    def crash(self) -> None:
        """Kill a process; a quorum is left, or it is asking too much."""
        running = [machine for machine in self.pods.values() if machine.running]
        if running:
            machine = self.rng.choice(running)
            machine.running = machine.ready = False
            self.log.append("a process dies")

    def wipe(self) -> None:
        """Lose the volume of a node that a quorum does not need."""
        for raft in self.rafts.values():
            alive = self.alive(raft)
            voters = [member for member in raft.members if member.voter]
            lost = [member for member in voters if self.ordinal_of(member.id) is None]
            if lost or len(alive) <= quorum(len(voters)) or len(alive) < len(voters):
                return
            member = self.rng.choice(alive)
            ordinal = self.ordinal_of(member.id)
            if ordinal is None or len(voters) < 3:
                return
            disk = self.disks[ordinal]
            self.disks[ordinal] = replace(disk, member_id=self._uid("id"), cluster_id="")
            machine = self.pods[ordinal]
            machine.running = machine.ready = False
            raft.joined.discard(member.id)
            self.log.append(f"the volume of demo-{ordinal} is wiped")

    def change_wish(self, *, annotations: dict[str, str] | None = None, **spec: Any) -> None:
        """Change what is wanted."""
        cluster = self.wish.cluster
        fields = {name: getattr(cluster, name) for name in cluster.__struct_fields__}
        if spec:
            before = {name: getattr(cluster.spec, name) for name in cluster.spec.__struct_fields__}
            fields["spec"] = type(cluster.spec)(**{**before, **spec})
            fields["generation"] = cluster.generation + 1
            self.log.append(f"wanted: {spec}")
        if annotations is not None:
            fields["annotations"] = annotations
        self.wish = replace(self.wish, cluster=type(cluster)(**fields))

    def tell(self, what: str) -> str:
        """What happened, for a failure."""
        return what + "\n" + "\n".join(self.log[-40:])

    def _uid(self, kind: str) -> str:
        return f"{kind}-{next(self._numbers)}"


def _set(body: dict[str, Any], revision: str) -> StatefulSet:
    claim = body["spec"]["volumeClaimTemplates"][0]["spec"]
    return StatefulSet(
        name=body["metadata"]["name"],
        uid=body["metadata"]["uid"],
        replicas=body["spec"]["replicas"],
        update_revision=revision,
        claim_size=claim["resources"]["requests"]["storage"],
    )


def ordinal_of(name: str) -> int:
    """The ordinal of a pod of the model."""
    return int(name.rpartition("-")[2])


def describe(action: Action) -> str:
    """An action in a few words."""
    match action:
        case Apply(manifest=manifest):
            size = manifest["spec"].get("replicas", "") if "spec" in manifest else ""
            return f"apply {manifest['kind']} {manifest['metadata']['name']} {size}"
        case Delete():
            return f"delete {action.kind} {action.name}"
        case AddMember() | PromoteMember() | RemoveMember() | Transfer():
            return f"{type(action).__name__} {action.member.name} {action.member.id}"
        case _:
            return str(action)
