"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import msgspec

from distsync_node.api.schemas import ItemProblem, Problem
from distsync_node.asgi import Header
from distsync_node.errors import DistSyncError, MethodNotAllowed, Unauthorized

PROBLEM_TYPE = b"application/problem+json"
RETRY_AFTER_S = 1

_encoder = msgspec.json.Encoder()


def problem_of(error: DistSyncError, *, request_id: str | None, leader: str | None) -> Problem:
    """Return the body that tells this error. `leader` is told where it helps to know it."""
    fields = error.fields
    return Problem(
        type=f"urn:distsync:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=error.status,
        code=error.code,
        detail=error.detail,
        retriable=error.retriable,
        request_id=request_id,
        field=fields.get("field"),
        leader=leader if error.status in (503, 504) else None,
        cycle=fields.get("cycle"),
        limit=fields.get("limit"),
        stale=fields.get("stale"),
        newest=fields.get("newest"),
        version=fields.get("version"),
        errors=[ItemProblem(**one) for one in fields.get("errors") or ()] or None,
    )


def encode_problem(problem: Problem) -> bytes:
    """Return the JSON of a problem."""
    return _encoder.encode(problem)


def problem_headers(error: DistSyncError) -> list[Header]:
    """Return the headers this error brings, beside those of every answer."""
    headers: list[Header] = [(b"content-type", PROBLEM_TYPE)]
    if error.status in (429, 503):
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.fields["allow"]).encode()))
    if isinstance(error, Unauthorized):
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))
    return headers
