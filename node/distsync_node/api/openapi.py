"""The OpenAPI 3.1 document, from the structs that decode the requests and encode the answers."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from distsync_node import __version__, errors
from distsync_node.api.operation import Operation
from distsync_node.api.problems import PROBLEM_TYPE, problem_of
from distsync_node.api.schemas import MAX_BODY_BYTES, Problem
from distsync_node.errors import DistSyncError

_REFERENCE = "#/components/schemas/{name}"
_PROBLEM_TYPE = PROBLEM_TYPE.decode()

# One example of each error, made the way the node makes them.
_SAMPLES: tuple[DistSyncError, ...] = (
    errors.BadRequest("ttl_ms: Expected `int` >= 100", field="ttl_ms"),
    errors.MalformedBody("the body is not JSON: Input data was truncated"),
    errors.PayloadTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes"),
    errors.PathTooLong("the path and query are longer than 32768 bytes"),
    errors.UnsupportedMediaType("send the body as `Content-Type: application/json`"),
    errors.HeadersTooLarge("more than 32768 bytes of headers"),
    errors.RequestIdReused(
        "request_id: came before with another body; each request needs its own",
        field="request_id",
    ),
    errors.Unauthorized("send `Authorization: Bearer` with the shared secret"),
    errors.SessionNotFound("the session was closed, has expired or never was"),
    errors.RequestTimeout("the body did not arrive in time"),
    errors.LockHeld("lock 'orders/42' is not available; use wait_ms to wait for it"),
    errors.WaitTimeout("lock 'orders/42' did not become available within wait_ms"),
    errors.Cancelled("the wait was cancelled: its client has gone away"),
    errors.Deadlock(
        "to wait for lock 'a' would close the cycle worker-7 -> worker-9 -> worker-7",
        cycle=["worker-7", "worker-9"],
    ),
    errors.LockLost("this request was granted before, and that grant has ended"),
    errors.LimitMismatch("lock 'gpu-pool' has another limit, fixed by its first holder"),
    errors.NotHolder("owner and token name no current grant of lock 'orders/42'"),
    errors.SessionExists("a session of that request_id is open"),
    errors.ConfigConflict("the membership is not what was expected, or a change is under way"),
    errors.ClusterMismatch("this member belongs to another cluster"),
    errors.AlreadyBootstrapped("this node belongs to another cluster"),
    errors.LimitReached("too many requests at once on this node", limit="requests"),
    errors.NoLeader("no leader answered in time; nothing was proposed"),
    errors.Uninitialised("this node belongs to no cluster yet"),
    errors.MemberRemoved("this node was removed from its cluster"),
    errors.ShuttingDown("this node is draining"),
    errors.OutcomeUnknown("no outcome in time; retry with the same request_id to learn it"),
    errors.DiskFull("the disk of the leader is full; free space, or wait for another leader"),
    errors.QueueNotFound("there is no queue 'emails'"),
    errors.MessageNotFound("queue 'emails' has no message '9f1c2e7ab04d11c35e60-0'"),
    errors.MessageInFlight("message '9f1c2e7ab04d11c35e60-0' is claimed by a consumer"),
    errors.StaleReceipt(
        "the claims of 1 receipts have ended",
        stale=["9f1c2e7ab04d11c35e60-0.4be1a7c09d2f8e31.5d0c1b7a"],
    ),
    errors.Fenced("lock 'orders/42' has had a newer grant (1843) than 1842", newest=1843),
    errors.QueueFull("queue 'emails' holds 100 of at most 100 messages", limit="max_length"),
    errors.RedisUnavailable("redis does not answer"),
    errors.ComputeTimeout("another caller still computes this key"),
    errors.ComputeLost("another caller may compute this key by now; nothing was written"),
    errors.LineLost("all nodes that had the newest value of 'users/42' are gone"),
    errors.VersionMismatch("the key has version 7.12", version="7.12"),
    errors.NotFound("the cache has no 'users/42'", version="7.13"),
    errors.Unavailable("the home of the key did not answer in time; nothing was done"),
    errors.RedisFull("redis has no memory left (maxmemory); nothing was done"),
)
_SAMPLE_OF = {type(sample): sample for sample in _SAMPLES}

# What holds between members of a body; a struct has no words for it.
_RULES: dict[str, dict[str, Any]] = {
    "AcquireRequest": {
        "if": {"properties": {"limit": {"type": "integer"}}, "required": ["limit"]},
        "then": {"properties": {"mode": {"const": "shared"}}, "required": ["mode"]},
    },
    "ForceReleaseRequest": {
        "if": {"properties": {"owner": {"minLength": 1}}, "required": ["owner"]},
        "then": {"properties": {"token": {"minimum": 1}}, "required": ["token"]},
    },
}

_HEADERS: dict[str, Any] = {
    "Distsync-Leader": {
        "description": "Where clients reach the leader, if one is known",
        "schema": {"type": "string"},
    },
    "Distsync-Owner": {
        "description": (
            "Where clients reach the node that owns the queue, or is the home of the key; asking it"
            " saves a hop"
        ),
        "schema": {"type": "string"},
    },
    "Distsync-Node": {
        "description": "Name of the node that answered",
        "schema": {"type": "string"},
    },
    "X-Request-Id": {
        "description": "Names this request in the logs; your own if you sent one",
        "schema": {"type": "string"},
    },
    "ETag": {
        "description": "The version of the value, in double quotes",
        "schema": {"type": "string"},
    },
    "Distsync-Cache": {
        "description": "Whether the node that answered had the value itself",
        "schema": {"enum": ["hit", "miss"]},
    },
    "Distsync-State": {
        "description": "Of bytes: the state of the line at the node that answered",
        "schema": {"enum": ["M", "E", "S", "I"]},
    },
    "Distsync-Ttl-Ms": {
        "description": "Of bytes that expire: what remains, milliseconds",
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
    },
    "Retry-After": {
        "description": "Try again after so many seconds",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_READ_CONDITIONS: dict[str, dict[str, Any]] = {
    "If-None-Match": {
        "description": "An ETag: 304 if the value has that version",
        "schema": {"type": "string", "pattern": "^[ -~]*$"},
        "example": '"7.12"',
    },
}
_WRITE_CONDITIONS: dict[str, dict[str, Any]] = {
    "If-Match": {
        "description": "An ETag; the same as if_version",
        "schema": {
            "type": "string",
            "pattern": r'^"(0|[1-9][0-9]{0,15})\.(0|[1-9][0-9]{0,15})"$',
        },
    },
    "If-None-Match": {
        "description": "Only if there is no value; the same as if_version 0.0",
        "schema": {"type": "string", "enum": ["*"]},
    },
}
_OCTETS = "application/octet-stream"
_BYTES = {"type": "string", "contentMediaType": _OCTETS}
_CLIENT_HEADER: dict[str, Any] = {
    "name": "Distsync-Client",
    "in": "header",
    "required": False,
    "description": "Who retries: request ids are kept apart by it. At most 128 bytes.",
    "schema": {"type": "string", "maxLength": 128, "pattern": "^[ -~]*$", "default": ""},
    "example": "billing-5d9f",
}


def build_document(
    operations: Iterable[Operation], *, title: str, description: str, has_secret: bool = False
) -> dict[str, Any]:
    """Return the document of these operations."""
    listed = tuple(operations)
    components: dict[str, Any] = {
        "schemas": _schemas(listed),
        "headers": _HEADERS,
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": __version__, "description": description},
        "servers": [{"url": "/"}, {"url": "/v1", "description": "Alias of every path"}],
        "paths": {},
        "components": components,
    }
    if has_secret:
        components["securitySchemes"] = {"secret": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"secret": []}]
    for operation in listed:
        methods = document["paths"].setdefault(operation.path, {})
        methods[operation.method.lower()] = _operation(operation)
    return document


def _structs(operations: tuple[Operation, ...]) -> list[Any]:
    structs: list[Any] = [Problem]
    for operation in operations:
        for struct in (operation.request, operation.response):
            if struct is not None and not isinstance(struct, str) and struct not in structs:
                structs.append(struct)
    return structs


def _schemas(operations: tuple[Operation, ...]) -> dict[str, Any]:
    structs = _structs(operations)
    _, components = msgspec.json.schema_components(structs, ref_template=_REFERENCE)
    return {name: {**schema, **_RULES.get(name, {})} for name, schema in sorted(components.items())}


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": _parameters(operation),
        "responses": {"200": _answer(operation), **_problems(operation.errors)},
    }
    if operation.has_etag:
        described["responses"]["304"] = {
            "description": "The value has the version of If-None-Match",
            "headers": _header_references("ETag", "Distsync-Cache", "Distsync-Owner"),
            "content": {},
        }
    if operation.description:
        described["description"] = operation.description
    if operation.request is not None:
        described["requestBody"] = {
            "required": not operation.is_body_optional,
            "content": {
                "application/json": {
                    "schema": _reference(operation.request),
                    "examples": _examples(operation.requests),
                }
            },
        }
        if operation.is_raw:
            content = described["requestBody"]["content"]
            content[_OCTETS] = {"schema": _BYTES, "examples": {"bytes": {"value": "hello"}}}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters = [_CLIENT_HEADER] if operation.request is not None else []
    for name, kind, example in operation.path_parameters:
        schema, _ = msgspec.json.schema_components([kind])
        parameters.append(
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": "One percent-encoded segment: / is written %2F",
                "schema": schema[0],
                "example": example,
            }
        )
    if operation.query is not None:
        _, components = msgspec.json.schema_components([operation.query])
        described = components[operation.query.__name__]
        for name, schema in described["properties"].items():
            required = name in described.get("required", ())
            parameters.append({"name": name, "in": "query", "required": required, "schema": schema})
    conditions = _READ_CONDITIONS if operation.has_etag else {}
    if operation.is_conditional:
        conditions = _WRITE_CONDITIONS
    parameters += [
        {"name": name, "in": "header", "required": False, **described}
        for name, described in conditions.items()
    ]
    return parameters


def _answer(operation: Operation) -> dict[str, Any]:
    if isinstance(operation.response, str):
        media_type, schema = operation.response, operation.schema or {"type": "string"}
    else:
        media_type, schema = "application/json", _reference(operation.response)
    names = ["Distsync-Leader", "Distsync-Node", "X-Request-Id"]
    if operation.tag in ("queues", "cache"):
        names.append("Distsync-Owner")
    if operation.has_etag:
        names += ["ETag", "Distsync-Cache"]
    content = {media_type: {"schema": schema, "examples": _examples(operation.answers)}}
    if operation.is_raw and operation.has_etag:
        names += ["Distsync-State", "Distsync-Ttl-Ms"]
        content[_OCTETS] = {"schema": _BYTES, "examples": {"bytes": {"value": "hello"}}}
    return {"description": "Done", "headers": _header_references(*names), "content": content}


def _problems(kinds: tuple[type[DistSyncError], ...]) -> dict[str, Any]:
    by_status: dict[int, list[type[DistSyncError]]] = {}
    for kind in dict.fromkeys(kinds):
        by_status.setdefault(kind.status, []).append(kind)
    return {str(status): _problem(status, by_status[status]) for status in sorted(by_status)}


def _problem(status: int, kinds: list[type[DistSyncError]]) -> dict[str, Any]:
    headers = ["Distsync-Leader", "Distsync-Node", "X-Request-Id"]
    if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers.append("Retry-After")
    return {
        "description": "; ".join(f"`{kind.code}`: {_first_line(kind)}" for kind in kinds),
        "headers": _header_references(*headers),
        "content": {
            _PROBLEM_TYPE: {
                "schema": _reference(Problem),
                "examples": {kind.code: {"value": _problem_example(kind)} for kind in kinds},
            }
        },
    }


def _problem_example(kind: type[DistSyncError]) -> Any:
    problem = problem_of(_SAMPLE_OF[kind], request_id="5f0c2a", leader="http://10.0.0.11:8080")
    return msgspec.to_builtins(problem)


def _first_line(kind: type[DistSyncError]) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]


def _header_references(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _reference(struct: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=struct.__name__)}


def _examples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": value} for name, value in values.items()}
