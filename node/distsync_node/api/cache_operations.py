"""The operations of the cache, as their users read of them."""

from __future__ import annotations

from typing import Any

from distsync_node import errors
from distsync_node.api import cache_schemas as schemas
from distsync_node.api.operation import BODY, LIMITED, Errors, Operation

_NODE: Errors = (
    *LIMITED,
    errors.RedisUnavailable,
    errors.ShuttingDown,
    errors.Unavailable,
)
_READ: Errors = (*_NODE, errors.LineLost, errors.RedisFull)
_WRITE: Errors = (
    *_READ,
    errors.VersionMismatch,
    errors.Fenced,
    errors.NoLeader,
    errors.OutcomeUnknown,
)
_KEY: tuple[str, Any, str] = ("key", schemas.Key, "users%2F42")

_VIEW = {"key": "users/42", "value": {"name": "Ada"}, "version": "7.12", "state": "E"}
_BYTES = {**_VIEW, "value": "aGVsbG8=", "encoding": "base64", "ttl_ms": 59_990}
_LINE = {
    "key": "users/42",
    "state": "M",
    "version": "7.12",
    "bytes": 218,
    "dirty": True,
    "home": "node-2",
}
_STATS = {
    "lines": {"M": 1, "E": 12, "S": 3},
    "bytes": 4_096,
    "max_bytes": 67_108_864,
    "dirty_bytes": 218,
    "kept_bytes": 0,
    "hits": 5_120,
    "misses": {"absent": 16},
    "snoops": 3,
    "invalidations": 2,
    "write_backs": 9,
    "evictions": 0,
    "dropped": 0,
    "oldest_dirty_ms": 412,
    "durability": "mirrored",
    "epoch": 7,
    "settled": True,
}

CACHE_OPERATIONS = (
    Operation(
        method="GET",
        path="/cache/{key}",
        id="get_value",
        tag="cache",
        summary="Read a value",
        description=(
            "Linearizable: what any node acknowledged before is read at every node. JSON comes in"
            " an object, bytes come as they are, or in that object with `Accept: application/json`."
        ),
        response=schemas.ValueResponse,
        answers={"json": _VIEW, "bytes": _BYTES},
        is_raw=True,
        has_etag=True,
        path_parameters=(_KEY,),
        errors=(*_READ, errors.NotFound),
    ),
    Operation(
        method="PUT",
        path="/cache/{key}",
        id="put_value",
        tag="cache",
        summary="Write a value",
        description=(
            "JSON, or bytes as `application/octet-stream` with the rest in the query. With"
            " `if_version` only if the value has that version; 0.0, or `If-None-Match: *`: only if"
            " there is none. After 504 it may have been done."
        ),
        request=schemas.PutRequest,
        requests={
            "plain": {"value": {"name": "Ada"}},
            "bytes": {"value": "aGVsbG8=", "encoding": "base64", "ttl_ms": 60_000},
            "only if unchanged": {"value": 2, "if_version": "7.12", "tags": ["users"]},
        },
        response=schemas.WrittenResponse,
        answers={"done": {"key": "users/42", "version": "7.12", "state": "M"}},
        query=schemas.PutQuery,
        is_raw=True,
        is_conditional=True,
        path_parameters=(_KEY,),
        errors=(*_WRITE, *BODY, errors.ComputeLost),
    ),
    Operation(
        method="DELETE",
        path="/cache/{key}",
        id="delete_value",
        tag="cache",
        summary="Delete a value, if there is one",
        response=schemas.DeletedResponse,
        answers={"done": {"key": "users/42", "version": "7.13"}},
        query=schemas.DeleteQuery,
        is_conditional=True,
        path_parameters=(_KEY,),
        errors=_WRITE,
    ),
    Operation(
        method="POST",
        path="/cache/batch",
        id="batch_values",
        tag="cache",
        summary="Write, delete and read many values",
        description=(
            "Each item by itself, writes and deletions before reads. Up to 1,000 items of each kind"
            " and 8 MiB; the values read may have 16 MiB."
        ),
        request=schemas.BatchRequest,
        requests={
            "some": {
                "set": [{"key": "a", "value": 1}],
                "delete": ["b"],
                "get": ["a", "b"],
            }
        },
        response=schemas.BatchResponse,
        answers={
            "some": {
                "get": {
                    "a": {"value": 1, "version": "7.14", "state": "M"},
                    "b": {
                        "error": {
                            "code": "not_found",
                            "detail": "the cache has no 'b'",
                            "retriable": False,
                            "version": "7.15",
                        }
                    },
                },
                "set": [{"key": "a", "version": "7.14"}],
                "delete": [{"key": "b", "version": "7.15"}],
            }
        },
        errors=(*_NODE, *BODY, errors.OutcomeUnknown),
    ),
    Operation(
        method="POST",
        path="/cache/compute",
        id="compute_value",
        tag="cache",
        summary="Get a value, or become the one who computes it",
        description=(
            "One caller at a time is told to compute: it puts the value with the token. When it has"
            " not done so after `lease_ms`, one of those who wait takes over."
        ),
        request=schemas.ComputeRequest,
        requests={"plain": {"key": "users/42"}},
        response=schemas.ComputeResponse,
        answers={
            "value": {**_VIEW, "status": "value"},
            "compute": {
                "status": "compute",
                "key": "users/42",
                "token": "5f0c2ab7d1e94c60aa17c3b2",
                "expires_in_ms": 9_990,
            },
        },
        errors=(*_READ, *BODY, errors.ComputeTimeout),
    ),
    Operation(
        method="DELETE",
        path="/cache/{key}/compute",
        id="give_up_computation",
        tag="cache",
        summary="Compute a value no more",
        response=schemas.GiveUpResponse,
        answers={"done": {"given_up": True}},
        query=schemas.GiveUpQuery,
        path_parameters=(_KEY,),
        errors=_READ,
    ),
    Operation(
        method="POST",
        path="/cache/invalidate_tag",
        id="invalidate_tag",
        tag="cache",
        summary="Have every value with a tag be gone",
        description=(
            "At once and on every node. Costs one write, however many values there are: they are"
            " overwritten or expire later."
        ),
        request=schemas.TagRequest,
        requests={"plain": {"tag": "users"}},
        response=schemas.TagResponse,
        answers={"done": {"tag": "users", "version": "7.16"}},
        errors=(*_READ, *BODY, errors.OutcomeUnknown),
    ),
    Operation(
        method="GET",
        path="/cache",
        id="get_cache",
        tag="cache",
        summary="What this node holds of the cache",
        response=schemas.CacheResponse,
        answers={"some": _STATS},
        errors=_NODE,
    ),
    Operation(
        method="GET",
        path="/debug/cache/lines",
        id="list_lines",
        tag="cache",
        summary="The lines of this node, in the order of their keys",
        response=schemas.LinesResponse,
        answers={"some": {"lines": [_LINE], "next": None}},
        query=schemas.LinesQuery,
        errors=_NODE,
    ),
)
