"""What the client reads from a node, and the bodies it sends.

Fields keep the names of the API, so durations are integer milliseconds; the properties without a
unit in their name are float seconds. Fields a newer node adds are ignored.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

__all__ = [
    "ClusterStatus",
    "Holder",
    "LockInfo",
    "Member",
    "Mode",
    "RefusedItem",
    "Waiter",
]

Mode: TypeAlias = Literal["exclusive", "shared"]


class View(msgspec.Struct, frozen=True, gc=False):
    """What a node answers."""


class Holder(View, frozen=True, kw_only=True):
    """One grant of a lock."""

    owner: str
    mode: Mode
    token: int
    expires_in_ms: int
    session: str | None = None

    @property
    def expires_in(self) -> float:
        """Seconds until the lease of the grant ends, when the node answered."""
        return self.expires_in_ms / 1000


class Waiter(View, frozen=True, kw_only=True):
    """One waiting request; position 0 is next."""

    owner: str
    mode: Mode
    position: int
    gives_up_in_ms: int
    upgrade: bool = False

    @property
    def gives_up_in(self) -> float:
        """Seconds until the request gives up, when the node answered."""
        return self.gives_up_in_ms / 1000


class LockInfo(View, frozen=True, kw_only=True):
    """The state of a lock; a free one has no holders. `token` is the newest holder's.

    The lists show the first holders and waiters only; the counts count all.
    """

    name: str
    mode: Mode | None = None
    limit: int | None = None
    token: int | None = None
    holders: list[Holder] = []
    waiters: list[Waiter] = []
    waiter_count: int = 0
    holder_count: int = 0

    @property
    def held(self) -> bool:
        """Whether anybody holds the lock."""
        return bool(self.holders)


class Member(View, frozen=True, kw_only=True):
    """A member of the cluster as the answering node sees it."""

    id: str
    name: str
    peer_url: str = ""
    client_url: str = ""
    voter: bool = False
    role: str = "follower"
    match_index: int | None = None
    progress: str | None = None
    last_contact_ms: int | None = None


class ClusterStatus(View, frozen=True, kw_only=True):
    """The answering node's own view of itself and the cluster.

    `serving`: it serves its part of the ring of `ring_epoch`, which places queues and values.
    """

    node: str
    member_id: str = ""
    state: str = "member"
    role: str = "follower"
    leader: str | None = None
    leader_url: str | None = None
    term: int = 0
    commit_index: int = 0
    applied_index: int = 0
    config_index: int = 0
    cluster_id: str | None = None
    cluster_version: int = 0
    version: str = ""
    ready: bool = False
    serving: bool = True  # what does not say so is taken to serve once it is ready
    ring_epoch: int = 0
    disk_full: bool = False
    members: list[Member] = []
    locks: int = 0
    waiters: int = 0
    sessions: int = 0


# --- Answers the library turns into something else ----------------------------------------------


class Grant(View, frozen=True, kw_only=True):
    """POST /lock/acquire, /lock/upgrade, /lock/downgrade."""

    token: int
    expires_in_ms: int
    mode: Mode = "exclusive"


class NamedToken(View, frozen=True, kw_only=True):
    """One lock of a grant of several."""

    name: str
    token: int


class ManyGrant(View, frozen=True, kw_only=True):
    """POST /lock/acquire_many."""

    locks: list[NamedToken]
    expires_in_ms: int


class Renewed(View, frozen=True, kw_only=True):
    """POST /lock/renew and /session/keepalive."""

    expires_in_ms: int


class OpenedSession(View, frozen=True, kw_only=True):
    """POST /session."""

    session: str
    expires_in_ms: int


class Nothing(View, frozen=True, kw_only=True):
    """An answer whose arrival says it all."""


class LockPage(View, frozen=True, kw_only=True):
    """GET /locks."""

    locks: list[LockInfo]
    next: str | None = None


class RefusedItem(View, frozen=True):
    """One item of a batch that was refused: its place, and what is wrong with it."""

    index: int
    field: str
    code: str
    detail: str


class Problem(View, frozen=True, kw_only=True):
    """application/problem+json (RFC 9457)."""

    code: str
    status: int = 0
    detail: str = ""
    retriable: bool = False
    request_id: str | None = None
    field: str | None = None
    leader: str | None = None
    cycle: list[str] | None = None
    limit: str | None = None
    stale: list[str] | None = None
    newest: int | None = None
    version: str | None = None
    errors: list[RefusedItem] | None = None


# --- Bodies -------------------------------------------------------------------------------------


class Body(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a node is sent."""


class AcquireBody(Body, frozen=True, kw_only=True):
    """POST /lock/acquire."""

    name: str
    owner: str
    request_id: str
    mode: Mode = "exclusive"
    ttl_ms: int = 10_000
    wait_ms: int = 0
    limit: int | None = None
    session: str | None = None


class AcquireManyBody(Body, frozen=True, kw_only=True):
    """POST /lock/acquire_many."""

    names: list[str]
    owner: str
    request_id: str
    session: str
    mode: Mode = "exclusive"
    wait_ms: int = 0


class UpgradeBody(Body, frozen=True, kw_only=True):
    """POST /lock/upgrade."""

    name: str
    owner: str
    token: int
    request_id: str
    wait_ms: int = 0


class GrantBody(Body, frozen=True, kw_only=True):
    """POST /lock/downgrade and /lock/release."""

    name: str
    owner: str
    token: int
    request_id: str


class RenewBody(Body, frozen=True, kw_only=True):
    """POST /lock/renew."""

    name: str
    owner: str
    token: int
    ttl_ms: int = 10_000


class OpenSessionBody(Body, frozen=True, kw_only=True):
    """POST /session."""

    request_id: str
    ttl_ms: int = 10_000


class KeepAliveBody(Body, frozen=True, kw_only=True):
    """POST /session/keepalive."""

    session: str


class CloseSessionBody(Body, frozen=True, kw_only=True):
    """POST /session/close."""

    session: str
    request_id: str
