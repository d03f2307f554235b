"""Bodies of the cache endpoints; see `schemas` for what holds for all."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from distsync_node.api.schemas import MAX_SAFE_INTEGER, FenceOfWrite, Name
from distsync_node.cache import limits

MAX_PUT_BYTES = 2 * 1024 * 1024  # of JSON

Key = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.MAX_KEY_BYTES,
        description="Key, 1 to 1024 bytes of UTF-8 that do not begin with a zero byte",
        extra_json_schema={"pattern": "^[^\\u0000]"},
    ),
]
VersionText = Annotated[
    str,
    Meta(
        pattern=r"^(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})$",
        description="Version of a value; 0.0: there is none",
    ),
]
Tag = Annotated[str, Meta(min_length=1, max_length=limits.MAX_TAG_BYTES)]
Tags = Annotated[list[Tag], Meta(max_length=limits.MAX_TAGS)]
TagsOfComputation = Annotated[
    list[Tag],
    Meta(
        max_length=limits.MAX_TAGS,
        description="Of what it is computed from: once one is invalidated, the value is refused",
    ),
]
TtlMs = Annotated[
    int,
    Meta(
        ge=limits.MIN_TTL_MS,
        le=limits.MAX_TTL_MS,
        description="How long the value is there, milliseconds; without it, always",
    ),
]
ComputeToken = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=limits.MAX_TOKEN_BYTES,
        pattern="^[A-Za-z0-9]*$",
        description="Of POST /cache/compute",
    ),
]
Keys = Annotated[list[Key], Meta(max_length=limits.MAX_BATCH)]
State = Literal["M", "E", "S", "I"]
Encoding = Literal["base64"]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    pass


class _Response(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class PutRequest(_Request, frozen=True):
    """PUT /cache/{key}"""

    value: msgspec.Raw
    encoding: Encoding | None = None
    ttl_ms: TtlMs | None = None
    if_version: VersionText | None = None
    tags: Tags = []
    fence: FenceOfWrite | None = None
    compute_token: ComputeToken | None = None


class PutQuery(_Request, frozen=True):
    """PUT /cache/{key} of raw bytes"""

    ttl_ms: TtlMs | None = None
    if_version: VersionText | None = None
    tag: Tags = []
    fence_lock: Name | None = None
    fence_token: Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)] | None = None
    compute_token: ComputeToken | None = None


class DeleteQuery(_Request, frozen=True):
    """DELETE /cache/{key}"""

    if_version: VersionText | None = None
    fence_lock: Name | None = None
    fence_token: Annotated[int, Meta(ge=1, le=MAX_SAFE_INTEGER)] | None = None


class ValueResponse(_Response, frozen=True):
    """A value. Bytes are base64, as `encoding` says. `state`: of the line at this node."""

    key: str
    value: msgspec.Raw
    version: str
    state: State
    encoding: Encoding | None = None
    ttl_ms: int | None = None  # what remains


class WrittenResponse(_Response, frozen=True):
    """The write is done."""

    key: str
    version: str
    state: State


class DeletedResponse(_Response, frozen=True):
    """The key has no value."""

    key: str
    version: str


class SetItem(_Request, frozen=True):
    """One value of a batch."""

    key: Key
    value: msgspec.Raw
    encoding: Encoding | None = None
    ttl_ms: TtlMs | None = None
    if_version: VersionText | None = None
    tags: Tags = []
    fence: FenceOfWrite | None = None


class BatchRequest(_Request, frozen=True):
    """POST /cache/batch: each item by itself; sets and deletions first, then reads"""

    get: Keys = []
    set: Annotated[list[SetItem], Meta(max_length=limits.MAX_BATCH)] = []
    delete: Keys = []


class ItemError(_Response, frozen=True):
    """Why an item was not served."""

    code: str
    detail: str
    retriable: bool
    version: str | None = None
    newest: int | None = None
    limit: str | None = None


class ItemResponse(_Response, frozen=True):
    """What became of an item: a value, a version, or an error."""

    key: str | None = None
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    version: str | None = None
    state: State | None = None
    encoding: Encoding | None = None
    ttl_ms: int | None = None
    error: ItemError | None = None


class BatchResponse(_Response, frozen=True):
    """`get` by key; `set` and `delete` in order."""

    get: dict[str, ItemResponse] = {}
    set: list[ItemResponse] = []
    delete: list[ItemResponse] = []


class ComputeRequest(_Request, frozen=True):
    """POST /cache/compute"""

    key: Key
    wait_ms: Annotated[int, Meta(ge=0, le=limits.MAX_WAIT_MS)] = 10_000
    lease_ms: Annotated[
        int,
        Meta(
            ge=limits.MIN_LEASE_MS,
            le=limits.MAX_LEASE_MS,
            description="How long the caller has to compute; then one of those who wait takes over",
        ),
    ] = 10_000
    tags: TagsOfComputation = []


class ComputeResponse(_Response, frozen=True):
    """Either the value, or the token of the computation that the caller is to make."""

    status: Literal["value", "compute"]
    key: str
    value: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    version: str | None = None
    state: State | None = None
    encoding: Encoding | None = None
    ttl_ms: int | None = None
    token: str | None = None
    expires_in_ms: int | None = None


class GiveUpQuery(_Request, frozen=True):
    """DELETE /cache/{key}/compute"""

    token: ComputeToken


class GiveUpResponse(_Response, frozen=True):
    """Whether that token was computing."""

    given_up: bool


class TagRequest(_Request, frozen=True):
    """POST /cache/invalidate_tag"""

    tag: Tag


class TagResponse(_Response, frozen=True):
    """Every value that was set with the tag before is gone, on every node."""

    tag: str
    version: str


class CacheResponse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """GET /cache: what this node holds, and what it has done since it started.

    `settled`: the crash of any one node loses nothing of what this node answers for. It is false
    from when the ring (of that `epoch`) changes until all nodes have said what they keep.
    """

    lines: dict[str, int]
    bytes: int
    max_bytes: int
    dirty_bytes: int
    kept_bytes: int
    hits: int
    misses: dict[str, int]
    snoops: int
    invalidations: int
    write_backs: int
    evictions: int
    dropped: int
    oldest_dirty_ms: int
    durability: str
    epoch: int
    settled: bool


class LinesQuery(_Request, frozen=True):
    """GET /debug/cache/lines"""

    limit: Annotated[int, Meta(ge=1, le=limits.MAX_LINES_A_PAGE)] = 100
    after: str = ""


class LineResponse(_Response, frozen=True):
    """A line of this node."""

    key: str
    state: State
    version: str
    bytes: int
    dirty: bool
    home: str | None = None
    ttl_ms: int | None = None


class LinesResponse(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """In the order of keys; `next` is the `after` of the next page."""

    lines: list[LineResponse]
    next: str | None
