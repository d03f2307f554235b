"""What the client reads of the cache, and the bodies it sends; see `models` for what holds for all.

A version is the text "<epoch>.<counter>"; "0.0" is that of a key without a value.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from distsync.fences import FenceBody
from distsync.models import Body, Problem, View

__all__ = ["ABSENT", "CacheEntry", "CacheStats", "CachedLine", "LineCounts"]

ABSENT = "0.0"


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it was when the node answered.

    `value` is None where `found` is false, and may be None where it is true. `state` is that of the
    line at the node that answered: M, E or S, or I when it kept none. `ttl` is in seconds; None for
    a value that does not expire.
    """

    found: bool
    value: Any = None
    version: str = ABSENT
    state: str = "I"
    ttl: float | None = None


class LineCounts(View, frozen=True):
    """How many lines a node has in each state."""

    modified: int = msgspec.field(default=0, name="M")
    exclusive: int = msgspec.field(default=0, name="E")
    shared: int = msgspec.field(default=0, name="S")


class CacheStats(View, frozen=True, kw_only=True):
    """What one node's cache holds, and what has happened there since the node started.

    `kept_bytes` are values that it keeps for others, as their home or its successor; `misses` are
    counted by their reason. `settled`: the crash of any one node loses nothing of what this node
    answers for; after a crash it is false until the ring (of that `epoch`) has changed and the rest
    is in two places again, or in Redis.
    """

    lines: LineCounts
    bytes: int = 0
    max_bytes: int = 0
    dirty_bytes: int = 0
    kept_bytes: int = 0
    hits: int = 0
    misses: dict[str, int] = msgspec.field(default_factory=dict)
    snoops: int = 0
    invalidations: int = 0
    write_backs: int = 0
    evictions: int = 0
    dropped: int = 0
    oldest_dirty_ms: int = 0
    durability: str = ""
    epoch: int = 0
    settled: bool = False


class CachedLine(View, frozen=True, kw_only=True):
    """One line that a node holds."""

    key: str
    state: Literal["M", "E", "S"]
    version: str
    bytes: int
    dirty: bool = False
    home: str | None = None
    ttl_ms: int | None = None


# --- Answers the library turns into something else ----------------------------------------------


class ValueAnswer(View, frozen=True, kw_only=True):
    """GET /cache/{key} of a JSON value, an item of a batch and what /cache/compute found.

    As an item of a batch it may have an `error` instead of the rest; as an answer of /cache/compute
    it may have a `token`.
    """

    value: Any = None
    version: str = ABSENT
    state: str = "I"
    ttl_ms: int | None = None
    encoding: Literal["base64"] | None = None
    error: Problem | None = None


class ComputeAnswer(ValueAnswer, frozen=True, kw_only=True):
    """POST /cache/compute: a value, or the lease to compute it."""

    status: Literal["value", "compute"]
    token: str = ""
    expires_in_ms: int = 0


class Written(View, frozen=True, kw_only=True):
    """PUT and DELETE /cache/{key}, and an item of a batch."""

    version: str = ABSENT
    error: Problem | None = None


class BatchAnswer(View, frozen=True, kw_only=True):
    """POST /cache/batch."""

    get: dict[str, ValueAnswer] = msgspec.field(default_factory=dict)
    set: list[Written] = msgspec.field(default_factory=list)


class GivenUp(View, frozen=True, kw_only=True):
    """DELETE /cache/{key}/compute."""


class TagInvalidated(View, frozen=True, kw_only=True):
    """POST /cache/invalidate_tag."""


class LinesPage(View, frozen=True, kw_only=True):
    """GET /debug/cache/lines."""

    lines: list[CachedLine]
    next: str | None = None


# --- Bodies -------------------------------------------------------------------------------------


class PutBody(Body, frozen=True, kw_only=True):
    """PUT /cache/{key}; the value is encoded already."""

    value: msgspec.Raw
    ttl_ms: int | None = None
    if_version: str | None = None
    tags: tuple[str, ...] = ()
    fence: FenceBody | None = None
    compute_token: str | None = None


class BatchSetBody(PutBody, frozen=True, kw_only=True):
    """One value to set of POST /cache/batch."""

    key: str
    encoding: Literal["base64"] | None = None


class BatchBody(Body, frozen=True, kw_only=True):
    """POST /cache/batch; what is set is encoded already."""

    get: list[str] = msgspec.field(default_factory=list)
    set: list[msgspec.Raw] = msgspec.field(default_factory=list)


class ComputeBody(Body, frozen=True, kw_only=True):
    """POST /cache/compute."""

    key: str
    wait_ms: int
    lease_ms: int
    tags: tuple[str, ...] = ()


class TagBody(Body, frozen=True, kw_only=True):
    """POST /cache/invalidate_tag."""

    tag: str
