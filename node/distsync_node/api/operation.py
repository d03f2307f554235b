"""What the API says of one of its operations, and the errors that many have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from distsync_node import errors
from distsync_node.errors import DistSyncError

Errors = tuple[type[DistSyncError], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `request` and `response` are structs, or a media type of text."""

    method: str
    path: str
    id: str
    tag: str
    summary: str
    description: str = ""
    request: type[msgspec.Struct] | None = None
    is_body_optional: bool = False
    requests: dict[str, Any] = field(default_factory=dict)  # examples by name
    response: type[msgspec.Struct] | str
    schema: dict[str, Any] | None = None  # of a response that is a media type
    answers: dict[str, Any]  # examples by name
    query: type[msgspec.Struct] | None = None
    is_raw: bool = False  # bytes may take the place of JSON, in the body and in the answer
    has_etag: bool = False  # If-None-Match is heeded: 304
    is_conditional: bool = False  # If-Match and If-None-Match: * are heeded
    path_parameters: tuple[tuple[str, Any, str], ...] = ()  # name, its type, an example
    errors: Errors = ()


ALWAYS: Errors = (
    errors.PathTooLong,
    errors.BadRequest,
    errors.HeadersTooLarge,
)
LIMITED: Errors = (*ALWAYS, errors.LimitReached)
NODE: Errors = (
    errors.NoLeader,
    errors.Uninitialised,
    errors.MemberRemoved,
    errors.ShuttingDown,
)
BODY: Errors = (
    errors.MalformedBody,
    errors.RequestTimeout,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
)
