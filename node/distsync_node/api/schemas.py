"""Bodies of the public API, as msgspec structs: decoding, validation and OpenAPI come from them.

Durations are integer milliseconds. Integers stay below 2^53, so that JSON numbers hold them.
Unknown fields are refused: a misspelt option must not be ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_SAFE_INTEGER = 2**53 - 1
MAX_TTL_MS = 86_400_000
MIN_TTL_MS = 100
MAX_WAIT_MS = 600_000
MAX_NAME_BYTES = 512
MAX_BODY_BYTES = 256 * 1024

Name = Annotated[
    str,
    Meta(min_length=1, max_length=MAX_NAME_BYTES, description="Lock name, 1 to 512 bytes of UTF-8"),
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


class AcquireRequest(_Request):
    """POST /lock/acquire"""

    name: Name
    owner: Owner
    mode: Mode = "exclusive"
    ttl_ms: TtlMs = 10_000
    wait_ms: WaitMs = 0
    limit: Limit | None = None
    session: SessionName | None = None
    request_id: RequestId | None = None


class AcquireManyRequest(_Request):
    """POST /lock/acquire_many"""

    names: Annotated[
        list[Name], Meta(min_length=1, max_length=64, description="Distinct names, taken in one step")
    ]
    owner: Owner
    mode: Mode = "exclusive"
    ttl_ms: TtlMs = 10_000
    wait_ms: WaitMs = 0
    session: SessionName | None = None
    request_id: RequestId | None = None


class UpgradeRequest(_Request):
    """POST /lock/upgrade"""

    name: Name
    owner: Owner
    token: Token
    wait_ms: WaitMs = 0
    request_id: RequestId | None = None


class DowngradeRequest(_Request):
    """POST /lock/downgrade"""

    name: Name
    owner: Owner
    token: Token
    request_id: RequestId | None = None


class ReleaseRequest(_Request):
    """POST /lock/release"""

    name: Name
    owner: Owner
    token: Token
    request_id: RequestId | None = None


class RenewRequest(_Request):
    """POST /lock/renew"""

    name: Name
    owner: Owner
    token: Token
    ttl_ms: TtlMs = 10_000


class SessionRequest(_Request):
    """POST /session"""

    ttl_ms: TtlMs = 10_000
    request_id: RequestId | None = None


class KeepAliveRequest(_Request):
    """POST /session/keepalive"""

    session: SessionName


class CloseSessionRequest(_Request):
    """POST /session/close"""

    session: SessionName
    request_id: RequestId | None = None


class _Response(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    pass


class GrantResponse(_Response):
    """A held lock. `expires_in_ms` counts from the leader's answer; count it from your sending."""

    name: str
    owner: str
    mode: Mode
    token: int
    expires_in_ms: int


class NamedToken(_Response):
    """One lock of a grant of several."""

    name: str
    token: int


class ManyGrantResponse(_Response):
    """Several locks, granted in one step."""

    owner: str
    mode: Mode
    locks: list[NamedToken]
    expires_in_ms: int


class ReleasedResponse(_Response):
    """The grant has ended."""

    released: bool = True


class RenewedResponse(_Response):
    """The grant lives on."""

    name: str
    owner: str
    token: int
    expires_in_ms: int


class SessionResponse(_Response):
    """An open session."""

    session: str
    expires_in_ms: int


class ClosedResponse(_Response):
    """The session and its grants have ended."""

    closed: bool = True


class HolderView(_Response):
    """One grant of a lock."""

    owner: str
    mode: Mode
    token: int
    expires_in_ms: int
    session: str | None = None


class WaiterView(_Response):
    """One waiting request; position 0 is next."""

    owner: str
    mode: Mode
    position: int
    gives_up_in_ms: int


class LockResponse(_Response):
    """GET /lock/{name}; a free lock has no holders and no waiters. `token` is the newest holder's."""

    name: str
    mode: Mode | None
    limit: int | None
    token: int | None
    holders: list[HolderView]
    waiters: list[WaiterView]
    waiter_count: int


class LocksResponse(_Response):
    """GET /locks?prefix=&after=&limit=; `next` is the value of `after` for the next page."""

    locks: list[LockResponse]
    next: str | None


class MemberResponse(_Response):
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


class StatusResponse(_Response):
    """GET /cluster/status. Served from this node's own view, without asking others."""

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
    disk_full: bool
    members: list[MemberResponse]
    locks: int
    waiters: int
    sessions: int


class Problem(_Response):
    """application/problem+json (RFC 9457). `field` names what was wrong with a request."""

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


# --- Peer port: operator and administrator calls ----------------------------------------------


class BootstrapMember(_Request):
    """One member of the first configuration."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    peer_url: Annotated[str, Meta(min_length=1, max_length=512)]
    client_url: Annotated[str, Meta(max_length=512)] = ""


class BootstrapRequest(_Request):
    """POST /cluster/bootstrap (idempotent)."""

    cluster_id: Annotated[str, Meta(min_length=1, max_length=64)]
    members: Annotated[list[BootstrapMember], Meta(min_length=1, max_length=9)]


class AddMemberRequest(_Request):
    """POST /cluster/members: add a learner."""

    id: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    peer_url: Annotated[str, Meta(min_length=1, max_length=512)]
    client_url: Annotated[str, Meta(max_length=512)] = ""
    expected_config_index: Annotated[int, Meta(ge=0)] | None = None


class ChangeMemberRequest(_Request):
    """POST /cluster/members/{id}/promote and /demote."""

    expected_config_index: Annotated[int, Meta(ge=0)] | None = None


class TransferRequest(_Request):
    """POST /cluster/transfer: to that member id, or to the most advanced voter."""

    target: str | None = None


class ForceReleaseRequest(_Request):
    """POST /lock/force_release: an administrator ends a grant (or all of them without owner)."""

    name: Name
    owner: str = ""
    token: Annotated[int, Meta(ge=0, le=MAX_SAFE_INTEGER)] = 0
    request_id: RequestId | None = None


class ConfigurationResponse(_Response):
    """The answer to a membership call."""

    config_index: int
    members: list[MemberResponse]


class IdentityResponse(_Response):
    """GET /cluster/identity: who listens here."""

    member_id: str
    name: str
    state: Literal["uninitialised", "joining", "member", "removed", "stopped"]
    cluster_id: str | None
    config_index: int
    members: list[BootstrapMember]
    leader: str | None = None
    peer_url: str = ""
    client_url: str = ""
