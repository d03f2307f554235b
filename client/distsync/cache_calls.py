"""The calls of the cache, as the API has them. Any node takes any call; they keep to one node.

What may be repeated (see `transport`): reads, and the call for a lease to compute, freely; a write
that names the version of a value, or a compute lease, since a second one is refused; tags may be
invalidated twice. Any other write is sent once: after another client's write it would undo that
one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from distsync.cache_models import (
    ABSENT,
    BatchAnswer,
    BatchBody,
    CacheEntry,
    CacheStats,
    ComputeAnswer,
    ComputeBody,
    GivenUp,
    LinesPage,
    PutBody,
    TagBody,
    TagInvalidated,
    ValueAnswer,
    Written,
)
from distsync.connections import Answer
from distsync.core import Core
from distsync.errors import DistSyncError, NotFound, error_from_problem
from distsync.fences import FenceBody
from distsync.models import Problem
from distsync.paths import cache_path
from distsync.patience import Call
from distsync.transport import Repeat, Reply
from distsync.values import Payload

__all__ = ["MAX_BATCH", "CacheCalls", "Terms", "entry_of", "error_of_item"]

T = TypeVar("T")

MAX_BATCH: Final = 1000
"""Keys of a batch."""

_AS_IT_IS: Final = {"Accept": "*/*"}
_OF_BYTES: Final = {"Content-Type": "application/octet-stream"}


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a value is written."""

    ttl_ms: int | None = None
    if_version: str | None = None
    tags: tuple[str, ...] = ()
    fence: FenceBody | None = None
    compute_token: str | None = None

    @property
    def repeat(self) -> Repeat:
        """Whether the write may be sent again when it may have been done.

        The version of a value never comes back, so that a second write does not meet it. But a key
        is without a value again when another client has deleted what this one wrote.
        """
        is_guarded = self.if_version not in (None, ABSENT) or self.compute_token is not None
        return Repeat.GUARDED if is_guarded else Repeat.ONCE

    def query(self) -> str:
        """Return them as the query of a path."""
        fields: list[tuple[str, object]] = [("tag", tag) for tag in self.tags]
        fields += [
            (name, value)
            for name in ("ttl_ms", "if_version", "compute_token")
            if (value := getattr(self, name)) is not None
        ]
        if self.fence is not None:
            fields += [("fence_lock", self.fence.lock), ("fence_token", self.fence.token)]
        return f"?{urlencode(fields, quote_via=quote)}" if fields else ""


class CacheCalls:
    """The calls of the cache."""

    def __init__(self, core: Core) -> None:
        self.core = core

    async def get(self, key: str) -> CacheEntry:
        """Read a key; one without a value is an entry as well."""
        try:
            return await self._call("GET", cache_path(key), _read, headers=_AS_IT_IS)
        except NotFound as error:
            if "version" not in error.fields:
                raise  # whoever said that does not know of the cache
            return CacheEntry(found=False)

    async def put(self, key: str, payload: Payload, terms: Terms) -> str:
        """Write a value; returns its version."""
        path, decode = cache_path(key), self._decoder(Written)
        if payload.is_raw:
            written = await self._call(
                "PUT",
                path + terms.query(),
                decode,
                body=payload.data,
                headers=_OF_BYTES,
                repeat=terms.repeat,
            )
        else:
            body = PutBody(
                value=payload.as_json(),
                ttl_ms=terms.ttl_ms,
                if_version=terms.if_version,
                tags=terms.tags,
                fence=terms.fence,
                compute_token=terms.compute_token,
            )
            encoded = msgspec.json.encode(body)
            written = await self._call("PUT", path, decode, body=encoded, repeat=terms.repeat)
        return written.version

    async def delete(self, key: str, terms: Terms, repeat: Repeat | None = None) -> None:
        """Remove a value."""
        await self._call(
            "DELETE",
            cache_path(key) + terms.query(),
            self._decoder(Written),
            repeat=repeat or terms.repeat,
        )

    async def get_batch(self, keys: Sequence[str]) -> dict[str, ValueAnswer]:
        """Read up to 1000 keys; each answer may be an error."""
        answer = await self._post("/cache/batch", BatchBody(get=list(keys)), BatchAnswer)
        return answer.value.get

    async def set_batch(self, items: Sequence[msgspec.Raw]) -> list[Written]:
        """Write up to 1000 values; each answer may be an error."""
        body = BatchBody(set=list(items))
        answer = await self._post("/cache/batch", body, BatchAnswer, repeat=Repeat.ONCE)
        return answer.value.set

    async def begin_compute(
        self, key: str, wait_ms: int, lease_ms: int, tags: tuple[str, ...]
    ) -> Reply[ComputeAnswer]:
        """Wait for a value, or for the lease to compute it from what has these tags."""
        body = ComputeBody(key=key, wait_ms=wait_ms, lease_ms=lease_ms, tags=tags)
        return await self._post("/cache/compute", body, ComputeAnswer, wait_seconds=wait_ms / 1000)

    async def give_up_compute(self, key: str, token: str) -> None:
        """End the lease to compute a value."""
        path = f"{cache_path(key)}/compute?{urlencode({'token': token})}"
        await self._call("DELETE", path, self._decoder(GivenUp))

    async def invalidate_tag(self, tag: str) -> None:
        """Remove every value that was set with a tag."""
        await self._post("/cache/invalidate_tag", TagBody(tag=tag), TagInvalidated)

    async def stats(self) -> CacheStats:
        """Return the statistics of the node this client keeps to."""
        return await self._call("GET", "/cache", self._decoder(CacheStats))

    async def lines(self, after: str, limit: int) -> LinesPage:
        """Return lines of the node this client keeps to, those that follow a cursor."""
        query = urlencode({"after": after, "limit": limit} if after else {"limit": limit})
        return await self._call("GET", f"/debug/cache/lines?{query}", self._decoder(LinesPage))

    async def _post(
        self,
        path: str,
        body: msgspec.Struct,
        kind: type[T],
        *,
        repeat: Repeat = Repeat.IDEMPOTENT,
        wait_seconds: float = 0.0,
    ) -> Reply[T]:
        call = Call(
            "POST",
            path,
            msgspec.json.encode(body),
            self._decoder(kind),
            repeat,
            wait_seconds,
            needs_leader=False,
            keeps_to_one=True,
        )
        return await self.core.transport.run(call)

    async def _call(
        self,
        method: str,
        path: str,
        decode: Callable[[Answer], T],
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        repeat: Repeat = Repeat.IDEMPOTENT,
    ) -> T:
        call = Call(
            method,
            path,
            body,
            decode,
            repeat,
            needs_leader=False,
            keeps_to_one=True,
            headers=headers,
        )
        reply: Reply[T] = await self.core.transport.run(call)
        return reply.value

    def _decoder(self, kind: type[T]) -> Callable[[Answer], T]:
        return self.core.transport.decoder(kind)


_decode_value = msgspec.json.Decoder(ValueAnswer).decode


def _read(answer: Answer) -> CacheEntry:
    """Return what GET /cache/{key} found: JSON, or the bytes with the rest in the headers."""
    headers = answer.headers
    if headers.get("Content-Type", "").startswith("application/json"):
        return entry_of(_decode_value(answer.content))
    ttl_ms = headers.get("Distsync-Ttl-Ms")
    return CacheEntry(
        found=True,
        value=answer.content,
        version=headers.get("ETag", "").strip('"'),
        state=headers.get("Distsync-State", "I"),
        ttl=None if ttl_ms is None else int(ttl_ms) / 1000,
    )


def entry_of(answer: ValueAnswer) -> CacheEntry:
    """Return a value of a JSON answer."""
    value = answer.value
    if answer.encoding is not None:
        try:
            value = base64.b64decode(value, validate=True)
        except (binascii.Error, TypeError) as error:
            raise msgspec.DecodeError(f"not base64: {error}") from error
    return CacheEntry(
        found=True,
        value=value,
        version=answer.version,
        state=answer.state,
        ttl=None if answer.ttl_ms is None else answer.ttl_ms / 1000,
    )


def error_of_item(problem: Problem, key: str) -> DistSyncError:
    """Return the error of one item of a batch."""
    fields: dict[str, Any] = {
        name: value
        for name in ("version", "newest", "limit", "field")
        if (value := getattr(problem, name)) is not None
    }
    error = error_from_problem(
        status=problem.status,
        code=problem.code,
        detail=f"{key}: {problem.detail}",
        retriable=problem.retriable,
        fields={**fields, "key": key},
    )
    if not problem.status:
        kind = type(error)
        error.status, error.retriable = kind.status, kind.retriable
    return error
