"""GET, PUT, DELETE /cache/{key} and what belongs to them: any node takes any call.

A read that this node can serve from its own lines is answered without any await. The version of a
value is its ETag. JSON values are kept as the text that came; bytes are kept as bytes.
"""

from __future__ import annotations

import asyncio
import binascii
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Iterable
from typing import Final

import msgspec
from msgspec.json import Decoder, Encoder

from distsync_node.api import cache_schemas as schemas
from distsync_node.api.call import JSON, NOT_MODIFIED, Bodies, Call, Patience, field_error
from distsync_node.api.fences import verify_fence
from distsync_node.api.options import ApiOptions
from distsync_node.api.reads import query_of, query_pairs
from distsync_node.api.routes import decoded_segment
from distsync_node.api.schemas import FenceOfWrite
from distsync_node.asgi import Header
from distsync_node.cache import limits
from distsync_node.cache.calls import CacheCalls, Computation, Got, Put
from distsync_node.cache.types import ABSENT, Version
from distsync_node.cache.values import RESERVED, Value, format_version, parse_version
from distsync_node.errors import (
    BadRequest,
    DistSyncError,
    LimitReached,
    MalformedBody,
    NotFound,
    PayloadTooLarge,
)
from distsync_node.services.interface import Node

encode = Encoder().encode
_check_json = Decoder().decode

OCTETS: Header = (b"content-type", b"application/octet-stream")
HIT: Header = (b"distsync-cache", b"hit")
MISS: Header = (b"distsync-cache", b"miss")
MAX_PUT_FIELDS: Final = 32  # of a query
CONCURRENT_ITEMS: Final = 64  # of a batch


class CacheEndpoints:
    """The endpoints of the cache."""

    def __init__(
        self,
        node: Node,
        calls: CacheCalls,
        options: ApiOptions,
        patience: Patience,
        *,
        bodies: Bodies,
        batch_bodies: Bodies,
    ) -> None:
        self._calls = calls
        self._service = calls.service
        self._patience = patience
        self._bodies = bodies
        self._batch_bodies = batch_bodies
        self._put = Decoder(schemas.PutRequest)
        self._batch = Decoder(schemas.BatchRequest)
        self._compute = Decoder(schemas.ComputeRequest)
        self._tag = Decoder(schemas.TagRequest)

        async def verify(lock: str, token: int) -> None:
            await verify_fence(node, lock, token, timeout_ms=options.command_timeout_ms)

        calls.verify_with(verify)

    # --- One key ------------------------------------------------------------------------------

    async def get(self, call: Call) -> bytes:
        """GET /cache/{key}"""
        key = self._key(call)
        got = self._calls.hit(key)
        if got is not None:
            self._service.hits += 1  # a read counts by itself
        else:
            got = await self._patiently(call, self._calls.get(key))
        headers: dict[bytes, bytes] = dict(call.scope["headers"])
        return self.answer(call, key, got, headers)

    def answer(self, call: Call, key: str, got: Got, headers: dict[bytes, bytes]) -> bytes:
        """Return the body for what was read, and set status and headers of the call.

        Raises:
            NotFound: there is no value.
        """
        call.headers = [HIT if got.hit else MISS]
        if got.value is None:
            raise NotFound(f"the cache has no {key!r}", version=format_version(got.version))
        etag = b'"%d.%d"' % got.version
        call.headers.append((b"etag", etag))
        if _names(headers.get(b"if-none-match"), etag):
            call.status = NOT_MODIFIED
            return b""
        if got.value.is_raw and b"application/json" not in headers.get(b"accept", b""):
            call.headers += [OCTETS, (b"distsync-state", self._service.state(key).encode())]
            if got.remaining_ms:
                call.headers.append((b"distsync-ttl-ms", b"%d" % got.remaining_ms))
            return got.value.payload
        call.headers.append(JSON)
        return encode(self._view(key, got, got.value))

    def _view(self, key: str, got: Got, value: Value) -> schemas.ValueResponse:
        return schemas.ValueResponse(
            key=key,
            value=_as_json(value),
            version=format_version(got.version),
            state=_state(self._service.state(key)),
            encoding="base64" if value.is_raw else None,
            ttl_ms=got.remaining_ms or None,
        )

    async def put(self, call: Call) -> bytes:
        """PUT /cache/{key}"""
        key = self._key(call)
        media_type = (call.content_type or b"").split(b";")[0].strip().lower()
        if media_type == b"application/octet-stream":
            put = await self._raw_put(call, key)
        else:
            put = _put_of(key, await self._bodies.read(call, self._put))
        put = put._replace(if_version=_condition(call, put.if_version))
        version = await self._calls.put(put)
        return self._written(key, version)

    async def _raw_put(self, call: Call, key: str) -> Put:
        query = _put_query(call)
        payload = await self._bodies.read_raw(call)
        return Put(
            key,
            _raw_value(payload, "body"),
            _tags(query.tag),
            query.ttl_ms or 0,
            _version(query.if_version),
            _fence_of_query(query.fence_lock, query.fence_token),
            query.compute_token or "",
        )

    def _written(self, key: str, version: Version) -> bytes:
        return encode(
            schemas.WrittenResponse(
                key=key, version=format_version(version), state=_state(self._service.state(key))
            )
        )

    async def delete(self, call: Call) -> bytes:
        """DELETE /cache/{key}"""
        key = self._key(call)
        query = query_of(call, schemas.DeleteQuery)
        version = await self._calls.delete(
            key,
            _condition(call, _version(query.if_version)),
            _fence_of_query(query.fence_lock, query.fence_token),
        )
        return encode(schemas.DeletedResponse(key=key, version=format_version(version)))

    def _key(self, call: Call) -> str:
        key = checked_key(decoded_segment(call, "key"))
        call.owner_url = self._service.home_url(key)
        return key

    async def _patiently(self, call: Call, work: Awaitable[Got]) -> Got:
        """Wait for the homes, but not longer than the client does."""
        self._patience.begin_waiting(call)
        try:
            return await work
        finally:
            self._patience.end(call)

    # --- Many keys ----------------------------------------------------------------------------

    async def batch(self, call: Call) -> bytes:
        """POST /cache/batch"""
        request = await self._batch_bodies.read(call, self._batch)
        for position, item in enumerate(request.set):
            checked_key(item.key, f"set[{position}].key")
        for name, keys in (("get", request.get), ("delete", request.delete)):
            for position, key in enumerate(keys):
                checked_key(key, f"{name}[{position}]")
        turns = asyncio.Semaphore(CONCURRENT_ITEMS)
        sets = asyncio.gather(*(_in_turn(turns, self._set_item(item)) for item in request.set))
        deletions = asyncio.gather(
            *(_in_turn(turns, self._delete_item(key)) for key in request.delete)
        )
        done = await sets, await deletions
        room = _Room(limits.MAX_BATCH_READ_BYTES)
        keys = list(dict.fromkeys(request.get))
        got = await asyncio.gather(*(_in_turn(turns, self._get_item(key, room)) for key in keys))
        return encode(
            schemas.BatchResponse(
                get=dict(zip(keys, got, strict=True)), set=list(done[0]), delete=list(done[1])
            )
        )

    async def _get_item(self, key: str, room: _Room) -> schemas.ItemResponse:
        try:
            got = self._calls.hit(key)
            if got is None:
                got = await self._calls.get(key)
            else:
                self._service.hits += 1
            if got.value is None:
                version = format_version(got.version)
                raise NotFound(f"the cache has no {key!r}", version=version)
            room.take(len(got.value.payload))
        except DistSyncError as error:
            return _failed(error)
        view = self._view(key, got, got.value)
        return schemas.ItemResponse(
            value=view.value,
            version=view.version,
            state=view.state,
            encoding=view.encoding,
            ttl_ms=view.ttl_ms,
        )

    async def _set_item(self, item: schemas.SetItem) -> schemas.ItemResponse:
        try:
            put = Put(
                item.key,
                _value_of(item.value, item.encoding),
                _tags(item.tags),
                item.ttl_ms or 0,
                _version(item.if_version),
                _fence(item.fence),
            )
            version = format_version(await self._calls.put(put))
        except DistSyncError as error:
            return _failed(error, item.key)
        return schemas.ItemResponse(key=item.key, version=version)

    async def _delete_item(self, key: str) -> schemas.ItemResponse:
        try:
            version = format_version(await self._calls.delete(key))
        except DistSyncError as error:
            return _failed(error, key)
        return schemas.ItemResponse(key=key, version=version)

    async def invalidate_tag(self, call: Call) -> bytes:
        """POST /cache/invalidate_tag"""
        request = await self._bodies.read(call, self._tag)
        tag = _tags([request.tag], "tag")[0]
        version = await self._calls.invalidate_tag(tag)
        return encode(schemas.TagResponse(tag=tag, version=format_version(version)))

    # --- Get or compute -----------------------------------------------------------------------

    async def compute(self, call: Call) -> bytes:
        """POST /cache/compute"""
        request = await self._bodies.read(call, self._compute)
        key = checked_key(request.key)
        call.owner_url = self._service.home_url(key)
        self._patience.begin_waiting(call)
        try:
            outcome = await self._calls.compute(
                key, request.wait_ms, request.lease_ms, request.tags
            )
        finally:
            self._patience.end(call)
        if isinstance(outcome, Computation):
            return encode(
                schemas.ComputeResponse(
                    status="compute",
                    key=key,
                    token=outcome.token,
                    expires_in_ms=outcome.expires_in_ms,
                )
            )
        view = self._view(key, outcome, outcome.value or Value(b"null"))
        return encode(
            schemas.ComputeResponse(
                status="value",
                key=key,
                value=view.value,
                version=view.version,
                state=view.state,
                encoding=view.encoding,
                ttl_ms=view.ttl_ms,
            )
        )

    async def give_up(self, call: Call) -> bytes:
        """DELETE /cache/{key}/compute"""
        key = self._key(call)
        query = query_of(call, schemas.GiveUpQuery)
        return encode(schemas.GiveUpResponse(given_up=await self._calls.give_up(key, query.token)))

    # --- This node ----------------------------------------------------------------------------

    async def stats(self, _call: Call) -> bytes:
        """GET /cache"""
        stats = self._service.stats()
        return encode(
            schemas.CacheResponse(
                lines=stats.lines,
                bytes=stats.bytes,
                max_bytes=stats.max_bytes,
                dirty_bytes=stats.dirty_bytes,
                kept_bytes=stats.kept_bytes,
                hits=stats.hits,
                misses=stats.misses,
                snoops=stats.snoops,
                invalidations=stats.invalidations,
                write_backs=stats.write_backs,
                evictions=stats.evictions,
                dropped=stats.dropped,
                oldest_dirty_ms=stats.oldest_dirty_ms,
                durability=stats.durability,
                epoch=stats.epoch,
                settled=stats.settled,
            )
        )

    async def lines(self, call: Call) -> bytes:
        """GET /debug/cache/lines"""
        query = query_of(call, schemas.LinesQuery)
        page, following = self._service.lines(query.after, query.limit)
        return encode(
            schemas.LinesResponse(
                lines=[
                    schemas.LineResponse(
                        key=line.key,
                        state=_state(line.state),
                        version=format_version(line.version),
                        bytes=line.size,
                        dirty=line.dirty,
                        home=line.home,
                        ttl_ms=line.remaining_ms or None,
                    )
                    for line in page
                ],
                next=following,
            )
        )


class _Room:
    """The bytes that one answer may still carry."""

    def __init__(self, size: int) -> None:
        self._left = size

    def take(self, size: int) -> None:
        """Raises LimitReached: there is no room for so much."""
        if size > self._left:
            raise LimitReached("the answer would be too large; read it alone", limit="batch_bytes")
        self._left -= size


async def _in_turn(
    turns: asyncio.Semaphore, work: Awaitable[schemas.ItemResponse]
) -> schemas.ItemResponse:
    async with turns:
        return await work


def _failed(error: DistSyncError, key: str | None = None) -> schemas.ItemResponse:
    fields = error.fields
    return schemas.ItemResponse(
        key=key,
        error=schemas.ItemError(
            code=error.code,
            detail=error.detail,
            retriable=error.retriable,
            version=fields.get("version"),
            newest=fields.get("newest"),
            limit=fields.get("limit"),
        ),
    )


def checked_key(key: str, field: str = "key") -> str:
    """Return the key if clients may name it.

    Raises:
        BadRequest: it is too long in UTF-8, or one of our own.
    """
    if not key or len(key) > limits.MAX_KEY_BYTES or len(key.encode()) > limits.MAX_KEY_BYTES:
        raise BadRequest(f"{field}: not 1 to {limits.MAX_KEY_BYTES} bytes of UTF-8", field=field)
    if key.startswith(RESERVED):
        raise BadRequest(f"{field}: begins with a zero byte", field=field)
    return key


def _state(text: str) -> schemas.State:
    match text:
        case "M" | "E" | "S":
            return text
        case _:
            return "I"


def _as_json(value: Value) -> msgspec.Raw:
    if value.is_raw:
        return msgspec.Raw(b'"%b"' % b64encode(value.payload))
    return msgspec.Raw(value.payload)


def _put_of(key: str, request: schemas.PutRequest) -> Put:
    return Put(
        key,
        _value_of(request.value, request.encoding),
        _tags(request.tags),
        request.ttl_ms or 0,
        _version(request.if_version),
        _fence(request.fence),
        request.compute_token or "",
    )


def _value_of(raw: msgspec.Raw, encoding: schemas.Encoding | None) -> Value:
    payload = bytes(raw)
    try:
        value = _check_json(payload)
    except msgspec.ValidationError as error:
        raise BadRequest(f"value: {error}", field="value") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedBody(f"value: not JSON: {error}", field="value") from None
    if encoding is None:
        return _bounded(Value(payload), "value")
    try:
        if not isinstance(value, str):
            raise BadRequest("value: with encoding base64 it is a string", field="value")
        return _raw_value(b64decode(value.encode("ascii"), validate=True), "value")
    except (binascii.Error, UnicodeEncodeError):
        raise BadRequest("value: not base64", field="value") from None


def _raw_value(payload: bytes, field: str) -> Value:
    return _bounded(Value(payload, is_raw=True), field)


def _bounded(value: Value, field: str) -> Value:
    if len(value.payload) > limits.MAX_VALUE_BYTES:
        raise PayloadTooLarge(f"{field}: larger than {limits.MAX_VALUE_BYTES} bytes", field=field)
    return value


def _tags(tags: Iterable[str], field: str = "tags") -> tuple[str, ...]:
    unique = tuple(dict.fromkeys(tags))
    if any(len(tag.encode()) > limits.MAX_TAG_BYTES for tag in unique):
        raise BadRequest(f"{field}: longer than {limits.MAX_TAG_BYTES} bytes", field=field)
    return unique


def _version(text: str | None) -> Version | None:
    if text is None:
        return None
    version = parse_version(text)
    if version is None:
        raise BadRequest("if_version: is no version", field="if_version")
    return version


def _condition(call: Call, given: Version | None) -> Version | None:
    """Return the version that the value must have, by If-Match, If-None-Match or as it was given.

    Source: RFC 9110, 13.1.1 and 13.1.2.
    """
    headers: dict[bytes, bytes] = dict(call.scope["headers"])
    version = given
    if (raw := headers.get(b"if-match")) is not None:
        named = parse_version(raw.decode("latin-1").strip().strip('"'))
        version = _agreed("If-Match", named, "a version", version)
    if (raw := headers.get(b"if-none-match")) is not None:
        named = ABSENT if raw.strip() == b"*" else None
        version = _agreed("If-None-Match", named, "* for a write", version)
    return version


def _agreed(field: str, named: Version | None, wanted: str, given: Version | None) -> Version:
    if named is None:
        raise BadRequest(f"{field}: is not {wanted}", field=field)
    if given is not None and given != named:
        raise BadRequest(f"{field}: is another version than if_version", field=field)
    return named


def _fence(fence: FenceOfWrite | None) -> tuple[str, int] | None:
    return None if fence is None else (fence.lock, fence.token)


def _fence_of_query(lock: str | None, token: int | None) -> tuple[str, int] | None:
    if lock is None and token is None:
        return None
    if lock is None or token is None:
        field = "fence_token" if token is None else "fence_lock"
        raise BadRequest(f"{field}: a fence has a lock and a token", field=field)
    return lock, token


def _put_query(call: Call) -> schemas.PutQuery:
    """Return the query of a PUT of bytes; only `tag` may come more than once."""
    pairs = query_pairs(call, MAX_PUT_FIELDS)
    fields: dict[str, str | list[str]] = {}
    tags = [value for name, value in pairs if name == "tag"]
    for name, value in pairs:
        if name != "tag" and name in fields:
            raise BadRequest(f"{name}: is there twice", field=name)
        fields[name] = tags if name == "tag" else value
    try:
        return msgspec.convert(fields, schemas.PutQuery, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(error) from None


def _names(if_none_match: bytes | None, etag: bytes) -> bool:
    if if_none_match is None:
        return False
    given = [one.strip().removeprefix(b"W/") for one in if_none_match.split(b",")]
    return etag in given or given == [b"*"]
