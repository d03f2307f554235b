"""Bodies of the public API, as msgspec structs: decoding, validation and OpenAPI come from them.

Durations are integer milliseconds. Integers stay below 2^53, so that JSON numbers hold them.
Unknown fields are refused: a misspelt option must not be ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from distsync_node.addresses import OPTIONAL_CLIENT_URL_PATTERN, PEER_URL_PATTERN

MAX_SAFE_INTEGER = 2**53 - 1
MAX_RAISED_TOKEN = 2**52  # as many are left
MAX_TTL_MS = 86_400_000
MIN_TTL_MS = 100
MAX_WAIT_MS = 600_000
MAX_NAME_BYTES = 512
MAX_BODY_BYTES = 256 * 1024

NAME_PATTERN = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$"
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_NAME_BYTES,
        description="Lock name, 1 to 512 bytes of UTF-8 without control characters",
        extra_json_schema={"pattern": NAME_PATTERN},  # checked beside the length in bytes
    ),
]
Owner = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="Who asks; a node of the wait-for graph, not re-entrant",
    ),
]
RequestId = Annotated[
    str,
    Meta(min_length=1, max_length=128, description="Same id on each retry of the same request"),
]
SessionName = Annotated[str, Meta(min_length=1, max_length=128, description="Session id")]
TtlMs = Annotated[int, Meta(ge=MIN_TTL_MS, le=MAX_TTL_MS, description="Lease in milliseconds")]
WaitMs = Annotated[
    int, Meta(ge=0, le=MAX_WAIT_MS, description="How long to wait, milliseconds; 0 does not wait")
]
Token = Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER, description="Fencing token of the grant")]
Limit = Annotated[
    int, Meta(ge=1, le=1_000_000, description="Makes a shared lock a counting semaphore")
]
Mode = Literal["exclusive", "shared"]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    pass


class AcquireRequest(_Request, frozen=True):
    """POST /lock/acquire"""

    name: Name
    owner: Owner
    mode: Mode = "exclusive"
    ttl_ms: TtlMs = 10_000
    wait_ms: WaitMs = 0
    limit: Limit | None = None
    session: SessionName | None = None
    request_id: RequestId | None = None


class AcquireManyRequest(_Request, frozen=True):
    """POST /lock/acquire_many"""

    names: Annotated[
        list[Name],
        Meta(
            min_length=1,
            max_length=64,
            description="Distinct names, taken in one step",
            extra_json_schema={"uniqueItems": True},
        ),
    ]
    owner: Owner
    mode: Mode = "exclusive"
    ttl_ms: TtlMs = 10_000
    wait_ms: WaitMs = 0
    session: SessionName | None = None
    request_id: RequestId | None = None


class UpgradeRequest(_Request, frozen=True):
    """POST /lock/upgrade"""

    name: Name
    owner: Owner
    token: Token
    wait_ms: WaitMs = 0
    request_id: RequestId | None = None


class DowngradeRequest(_Request, frozen=True):
    """POST /lock/downgrade"""

    name: Name
    owner: Owner
    token: Token
    request_id: RequestId | None = None


class ReleaseRequest(_Request, frozen=True):
    """POST /lock/release"""

    name: Name
    owner: Owner
    token: Token
    request_id: RequestId | None = None


class RenewRequest(_Request, frozen=True):
    """POST /lock/renew"""

    name: Name
    owner: Owner
    token: Token
    ttl_ms: TtlMs = 10_000


class SessionRequest(_Request, frozen=True):
    """POST /session"""

    ttl_ms: TtlMs = 10_000
    request_id: RequestId | None = None


class KeepAliveRequest(_Request, frozen=True):
    """POST /session/keepalive"""

    session: SessionName


class CloseSessionRequest(_Request, frozen=True):
    """POST /session/close"""

    session: SessionName
    request_id: RequestId | None = None


class _Response(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class GrantResponse(_Response, frozen=True):
    """A held lock. `expires_in_ms` counts from the leader's answer; count it from your sending."""

    name: str
    owner: str
    mode: Mode
    token: int
    expires_in_ms: int


class NamedToken(_Response, frozen=True):
    """One lock of a grant of several."""

    name: str
    token: int


class ManyGrantResponse(_Response, frozen=True):
    """Several locks, granted in one step."""

    owner: str
    mode: Mode
    locks: list[NamedToken]
    expires_in_ms: int


class ReleasedResponse(_Response, frozen=True):
    """The grant has ended."""

    released: bool = True


class RenewedResponse(_Response, frozen=True):
    """The grant lives on."""

    name: str
    owner: str
    token: int
    expires_in_ms: int


class SessionResponse(_Response, frozen=True):
    """An open session."""

    session: str
    expires_in_ms: int


class ClosedResponse(_Response, frozen=True):
    """The session and its grants have ended."""

    closed: bool = True


class HolderView(_Response, frozen=True):
    """One grant of a lock."""

    owner: str
    mode: Mode
    token: int
    expires_in_ms: int
    session: str | None = None


class WaiterView(_Response, frozen=True):
    """One waiting request; position 0 is next."""

    owner: str
    mode: Mode
    position: int
    gives_up_in_ms: int
    upgrade: bool = False


class LockResponse(_Response, frozen=True):
    """GET /lock/{name}; a free lock has no holders and no waiters. `token` is the newest holder's.

    The lists show the first 1,000 (in lists of locks the first 100); the counts count all.
    """

    name: str
    mode: Mode | None
    limit: int | None
    token: int | None
    holders: list[HolderView]
    waiters: list[WaiterView]
    waiter_count: int
    holder_count: int


class LocksQuery(_Request, frozen=True):
    """GET /locks: which of the locks that are held or waited for."""

    prefix: Annotated[
        str, Meta(max_length=MAX_NAME_BYTES, description="Only names that begin with this")
    ] = ""
    after: Annotated[
        str, Meta(max_length=MAX_NAME_BYTES, description="Only names after this one")
    ] = ""
    limit: Annotated[int, Meta(ge=1, le=1_000, description="At most so many")] = 100


class LocksResponse(_Response, frozen=True):
    """GET /locks?prefix=&after=&limit=; `next` is the value of `after` for the next page."""

    locks: list[LockResponse]
    next: str | None


class MemberResponse(_Response, frozen=True):
    """A member of the cluster as this node sees it; the last three are known at the leader only."""

    id: str
    name: str
    peer_url: str
    client_url: str
    voter: bool
    role: Literal["leader", "follower", "learner"]
    match_index: int | None = None
    progress: str | None = None
    last_contact_ms: int | None = None


class StatusResponse(_Response, frozen=True):
    """GET /cluster/status. Served from this node's own view, without asking others.

    `ring_epoch` is of the newest ring that the node knows. `serving`: that ring names the node, as
    the process that it is now; it has the lease of its part, has taken over what others kept of it,
    and lets them work with it. When all members serve under one epoch, no call waits for the ring.
    """

    node: str
    member_id: str
    state: Literal["uninitialised", "joining", "member", "removed", "stopped"]
    role: Literal["leader", "follower", "candidate", "learner"]
    leader: str | None
    leader_url: str | None
    term: int
    commit_index: int
    applied_index: int
    config_index: int
    cluster_id: str | None
    cluster_version: int
    version: str
    ready: bool
    serving: bool
    ring_epoch: int
    disk_full: bool
    members: list[MemberResponse]
    locks: int
    waiters: int
    sessions: int


class HealthResponse(_Response, frozen=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class ReadyResponse(_Response, frozen=True):
    """The node serves."""

    status: Literal["ready"] = "ready"


class RingQuery(_Request, frozen=True):
    """GET /cluster/ring"""

    key: Annotated[
        str | None, Meta(description="Name of a queue or of a cached value: whose is it?")
    ] = None


class RingServer(_Response, frozen=True):
    """One node of the ring; `share` is the part of all keys that it owns."""

    name: str
    member_id: str
    incarnation: int
    weight: float
    share: float
    client_url: str


class RingResponse(_Response, frozen=True):
    """GET /cluster/ring?key=: the ring as this node knows it, and who owns `key`."""

    epoch: int
    virtual_nodes: int
    servers: list[RingServer]
    key: str | None = None
    owner: str | None = None


class FenceOfWrite(_Request, frozen=True):
    """The lock under which something is written, and the token of its exclusive grant."""

    lock: Name
    token: Token


class ItemProblem(_Response, frozen=True):
    """What was wrong with one item of a batch: the first thing, if there are several"""

    index: int
    field: str
    code: str
    detail: str


class Problem(_Response, omit_defaults=True, frozen=True):
    """application/problem+json (RFC 9457); members without a value are left out.

    `code` is what programs look at. `retriable`: the same request may be sent again; after 504 only
    with the `request_id` given here. `field` names what was wrong with a request, `limit` which
    limit was reached, `cycle` the owners of a deadlock, `leader` where clients reach the leader,
    `version` what version a key of the cache has, `errors` each item of a batch that was wrong.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    retriable: bool
    request_id: str | None = None
    field: str | None = None
    leader: str | None = None
    cycle: list[str] | None = None
    limit: str | None = None
    stale: list[str] | None = None  # receipts for which nothing was done
    newest: int | None = None  # the newest fencing token seen
    version: str | None = None  # the version of a key of the cache
    errors: list[ItemProblem] | None = None  # at most as many as a batch may have items


# --- Peer port: operator and administrator calls ----------------------------------------------


ConfigIndex = Annotated[
    int,
    Meta(
        ge=0, le=MAX_SAFE_INTEGER, description="Refuse unless this is the index of the membership"
    ),
]
MemberIdText = Annotated[
    str, Meta(min_length=1, max_length=64, pattern=NAME_PATTERN, description="Id of a member")
]
MemberName = Annotated[
    str, Meta(min_length=1, max_length=253, pattern=NAME_PATTERN, description="Name of a member")
]
PeerUrl = Annotated[
    str,
    Meta(
        max_length=512,
        pattern=PEER_URL_PATTERN,
        description="Address like http://host:port, without a path",
    ),
]
OptionalUrl = Annotated[
    str,
    Meta(
        max_length=512,
        pattern=OPTIONAL_CLIENT_URL_PATTERN,
        description="Like http://host:port, or empty",
    ),
]


class BootstrapMember(_Request, frozen=True):
    """One member of the first configuration."""

    id: MemberIdText
    name: MemberName
    peer_url: PeerUrl
    client_url: OptionalUrl = ""


class BootstrapRequest(_Request, frozen=True):
    """POST /cluster/bootstrap (idempotent)."""

    cluster_id: Annotated[str, Meta(min_length=1, max_length=64)]
    members: Annotated[
        list[BootstrapMember],
        Meta(
            min_length=1,
            max_length=9,
            description="No two with the same id, name or peer_url",
            extra_json_schema={"uniqueItems": True},
        ),
    ]


class AddMemberRequest(BootstrapMember, frozen=True):
    """POST /cluster/members: add a learner."""

    expected_config_index: ConfigIndex | None = None


class ChangeMemberRequest(_Request, frozen=True):
    """POST /cluster/members/{id}/promote and /demote; DELETE takes it as a parameter."""

    expected_config_index: ConfigIndex | None = None


class TransferRequest(_Request, frozen=True):
    """POST /cluster/transfer: to that member id, or to the most advanced voter."""

    target: MemberIdText | None = None


class TransferResponse(_Response, frozen=True):
    """The member that leads now, by name and by id."""

    leader: str
    member_id: str


class ArchiveResponse(_Response, frozen=True):
    """Where the removed member's data went, on the node's own disk."""

    archived_to: str


class ForceReleaseRequest(_Request, frozen=True):
    """POST /lock/force_release: an administrator ends a grant (or all of them without owner)."""

    name: Name
    owner: str = ""
    token: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)] = 0
    request_id: RequestId | None = None


class RaiseTokensRequest(_Request, frozen=True):
    """POST /lock/raise_tokens (idempotent)."""

    above: Annotated[
        int,
        Meta(ge=1, le=MAX_RAISED_TOKEN, description="Higher than every token issued so far"),
    ]


class RaisedResponse(_Response, frozen=True):
    """Every token from now on is above this one."""

    above: int


class ConfigurationResponse(_Response, frozen=True):
    """The answer to a membership call."""

    config_index: int
    members: list[MemberResponse]


class IdentityResponse(_Response, frozen=True):
    """GET /cluster/identity: who listens here."""

    member_id: str
    name: str
    state: Literal["uninitialised", "joining", "member", "removed", "stopped"]
    cluster_id: str | None
    config_index: int
    members: list[BootstrapMember]
    leader: str | None = None
    draining: bool = False
    peer_url: str = ""
    client_url: str = ""
