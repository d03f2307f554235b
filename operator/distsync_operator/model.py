"""What one pass observes, and the one thing it may do: values only, no I/O.

Everything `plan` decides from is in `Observed`, so that it can be tested as a function. Durations
are milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from distsync_operator.resources.common import Defaults
from distsync_operator.spec import Cluster, Manifest

# --- What is wanted -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """The resource, and what this operator fills in.

    `token` is a fresh random string for a Secret that does not exist yet. `waits_for` is the
    cluster whose turn comes before this one's, where only this version of the operator wants
    something changed; '' when it may be.
    """

    cluster: Cluster
    defaults: Defaults
    token: str
    waits_for: str = ""


# --- What is there --------------------------------------------------------------------------------

ObjectKey: TypeAlias = tuple[str, str]  # kind and name


def key_of(manifest: Manifest) -> ObjectKey:
    """Return the key of an object in the namespace of its cluster."""
    return manifest["kind"], manifest["metadata"]["name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a pod or a volume does not get on, in Kubernetes' own words."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of a node or of the managed Redis.

    `host_gone`: its Kubernetes node does not exist any more or is tainted `out-of-service`.
    `overdue`: it is terminating and its time is up. `ip` is '' before it has one.
    """

    name: str
    ordinal: int
    uid: str
    revision: str
    ip: str = ""
    ready: bool = False
    terminating: bool = False
    overdue: bool = False
    host_gone: bool = False
    trouble: Trouble | None = None

    @property
    def named_trouble(self) -> Trouble | None:
        """Its trouble, with its name."""
        if self.trouble is None:
            return None
        return replace(self.trouble, message=f"{self.name}: {self.trouble.message}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A volume claim; sizes are quantities.

    `terminating` also if it belongs to a pod that is gone and is about to be collected with it.
    """

    name: str
    ordinal: int
    size: str
    uid: str
    terminating: bool = False
    storage_class: str = ""
    bound: bool = True
    lost: bool = False
    replacing: bool = False  # its member is being replaced with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A member of a cluster, as one of its nodes knows it.

    Known at the leader only: how long it has been silent, and whether it has nearly all that is
    committed.
    """

    id: str
    name: str
    voter: bool
    peer_url: str = ""
    client_url: str = ""
    silent_ms: int | None = None
    caught_up: bool = False


NodeState = Literal[
    "silent",  # no answer, or it reads its data directory
    "refused",  # it has another secret
    "uninitialised",
    "joining",
    "member",
    "removed",
    "stopped",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What the node in a pod said of itself."""

    state: NodeState
    member_id: str = ""
    cluster_id: str = ""
    peer_url: str = ""
    client_url: str = ""
    role: str = ""
    leader: str = ""  # name of the leader it knows of
    term: int = 0
    config_index: int = 0
    members: tuple[Member, ...] = ()
    version: str = ""
    draining: bool = False
    serving: bool = False  # its part of the ring of `ring_epoch`
    ring_epoch: int = 0

    @property
    def is_empty(self) -> bool:
        """It belongs to no cluster and says so."""
        return self.state == "uninitialised"


SILENT = Node(state="silent")


@dataclass(frozen=True, slots=True, kw_only=True)
class StatefulSet:
    """What matters of a StatefulSet. `update_revision` is '' until its controller has caught up.

    `trouble` is why its controller cannot create pods that are missing.
    """

    name: str
    uid: str
    replicas: int
    update_revision: str
    claim_size: str
    ready_replicas: int = 0
    terminating: bool = False
    trouble: Trouble | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What one pass saw.

    `objects` are the live objects of the names that may be wanted, whoever made them. `redis_url`
    is the URL in the Secret that the resource names, None if there is none. `nodes` maps pod names.
    `altered` are the fields of objects in which what was applied is not what came of it: something
    in the API server, an admission webhook, has another opinion.
    """

    objects: Mapping[ObjectKey, Manifest] = field(default_factory=dict)
    altered: Mapping[ObjectKey, frozenset[str]] = field(default_factory=dict)
    stateful_set: StatefulSet | None = None
    redis_set: StatefulSet | None = None
    pods: tuple[Pod, ...] = ()
    redis_pods: tuple[Pod, ...] = ()
    claims: tuple[Claim, ...] = ()
    redis_claims: tuple[Claim, ...] = ()
    nodes: Mapping[str, Node] = field(default_factory=dict)
    redis_url: str | None = None
    has_service_monitor: bool = False
    ring: tuple[str, ...] = ()
    ring_epoch: int = 0

    @property
    def redis_trouble(self) -> Trouble | None:
        """Why the pod of the managed Redis does not get on, or is missing."""
        missing = self.redis_set.trouble if self.redis_set is not None else None
        return next((pod.named_trouble for pod in self.redis_pods if pod.trouble), missing)


# --- What to do -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Create an object or make it what the manifest says (server-side apply)."""

    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete an object if it still has this uid.

    `orphan` leaves what it owns; `force` does not wait for the machine that ran the pod.
    """

    kind: str
    name: str
    uid: str
    orphan: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeClaim:
    """Ask for a larger volume."""

    name: str
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkReplacing:
    """Write down at a claim that its member is to be replaced with it."""

    claim: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReplace:
    """Take the annotation that asked for a replacement off the resource: it is written down."""

    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Create the cluster of these members; every one of their pods said that it is empty."""

    cluster_id: str
    members: tuple[Member, ...]
    pods: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddMember:
    """Add the node in a pod as a learner."""

    via: str
    member: Member
    config_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromoteMember:
    """Make a learner vote."""

    via: str
    member: Member
    config_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveMember:
    """Remove a member for good."""

    via: str
    member: Member
    config_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Hand leadership to a member."""

    via: str
    member: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Have a node give up its part of the ring and become unready; it goes on forwarding."""

    pod: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """Have a removed node move its data aside and start again empty."""

    pod: str


Action: TypeAlias = (
    Apply
    | Delete
    | ResizeClaim
    | MarkReplacing
    | ForgetReplace
    | Bootstrap
    | AddMember
    | PromoteMember
    | RemoveMember
    | Transfer
    | Drain
    | Archive
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """The change under way, for people."""

    type: str
    target: str
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a pass does: at most one action. `trouble` is why the cluster is degraded.

    Without action and operation everything is as wanted, or waits for somebody to mend `trouble`.
    """

    action: Action | None = None
    operation: Operation | None = None
    trouble: Trouble | None = None
