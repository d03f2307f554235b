"""Requests become commands: names checked, retries recognisable, defaults filled in.

A command is remembered under (client, request id), with a digest of what was asked for. The digest
is taken over the decoded request, so spelling out a default or reordering the members of the JSON
makes no other request of it; the request id itself is not part of it. `wait_ms` is: a retry repeats
its first attempt word for word.
"""

from __future__ import annotations

import re
import secrets
from hashlib import blake2b
from typing import Any

import msgspec

from distsync_node.api.call import Call
from distsync_node.api.schemas import (
    MAX_NAME_BYTES,
    AcquireManyRequest,
    AcquireRequest,
    CloseSessionRequest,
    DowngradeRequest,
    ForceReleaseRequest,
    Mode,
    ReleaseRequest,
    RenewRequest,
    SessionRequest,
    UpgradeRequest,
)
from distsync_node.errors import BadRequest
from distsync_node.locks.commands import (
    Acquire,
    CloseSession,
    Downgrade,
    FencingToken,
    LockMode,
    OpenSession,
    Release,
    Renew,
    RequestKey,
    SessionId,
    Upgrade,
)

DIGEST_BYTES = 8
SESSION_ID_BYTES = 16

_MODES: dict[Mode, LockMode] = {"exclusive": LockMode.EXCLUSIVE, "shared": LockMode.SHARED}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")

_encoder = msgspec.msgpack.Encoder()


def digest_of(*asked: Any) -> bytes:
    """Return a short hash of what was asked for."""
    return blake2b(_encoder.encode(asked), digest_size=DIGEST_BYTES).digest()


def checked_name(name: str, field: str = "name") -> str:
    """Return the name if it is one.

    Raises:
        BadRequest: it is empty, too long in UTF-8, or has control characters.
    """
    if not name:
        raise BadRequest(f"{field}: must not be empty", field=field)
    if len(name) > MAX_NAME_BYTES or (not name.isascii() and len(name.encode()) > MAX_NAME_BYTES):
        raise BadRequest(f"{field}: longer than {MAX_NAME_BYTES} bytes of UTF-8", field=field)
    if not name.isprintable() and _CONTROL.search(name):
        raise BadRequest(f"{field}: has control characters", field=field)
    return name


def _key(call: Call, request_id: str | None) -> RequestKey:
    return RequestKey(client=call.client, request=call.name_command(request_id))


def _session(session: str | None) -> SessionId | None:
    return None if session is None else SessionId(session)


def acquire(call: Call, request: AcquireRequest) -> Acquire:
    """With a session, `ttl_ms` plays no part: the grant lives as long as the session."""
    if request.limit is not None and request.mode != "shared":
        raise BadRequest("limit: only a shared lock has a limit; add mode=shared", field="limit")
    name = checked_name(request.name)
    ttl_ms = 0 if request.session is not None else request.ttl_ms
    return Acquire(
        key=_key(call, request.request_id),
        digest=digest_of(
            "acquire",
            name,
            request.owner,
            request.mode,
            ttl_ms,
            request.wait_ms,
            request.limit,
            request.session,
        ),
        names=(name,),
        owner=request.owner,
        mode=_MODES[request.mode],
        ttl_ms=ttl_ms,
        wait_ms=request.wait_ms,
        limit=request.limit,
        session=_session(request.session),
    )


def acquire_many(call: Call, request: AcquireManyRequest) -> Acquire:
    """Several names in one entry."""
    names = tuple(
        checked_name(name, f"names[{position}]") for position, name in enumerate(request.names)
    )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadRequest(f"names: {twice!r} is there twice", field="names")
    ttl_ms = 0 if request.session is not None else request.ttl_ms
    return Acquire(
        key=_key(call, request.request_id),
        digest=digest_of(
            "acquire_many",
            names,
            request.owner,
            request.mode,
            ttl_ms,
            request.wait_ms,
            request.session,
        ),
        names=names,
        owner=request.owner,
        mode=_MODES[request.mode],
        ttl_ms=ttl_ms,
        wait_ms=request.wait_ms,
        session=_session(request.session),
    )


def upgrade(call: Call, request: UpgradeRequest) -> Upgrade:
    """Shared to exclusive."""
    name = checked_name(request.name)
    return Upgrade(
        key=_key(call, request.request_id),
        digest=digest_of("upgrade", name, request.owner, request.token, request.wait_ms),
        name=name,
        owner=request.owner,
        token=FencingToken(request.token),
        wait_ms=request.wait_ms,
    )


def downgrade(call: Call, request: DowngradeRequest) -> Downgrade:
    """Exclusive to shared."""
    name = checked_name(request.name)
    return Downgrade(
        key=_key(call, request.request_id),
        digest=digest_of("downgrade", name, request.owner, request.token),
        name=name,
        owner=request.owner,
        token=FencingToken(request.token),
    )


def release(call: Call, request: ReleaseRequest) -> Release:
    """By its holder."""
    name = checked_name(request.name)
    return Release(
        key=_key(call, request.request_id),
        digest=digest_of("release", name, request.owner, request.token),
        name=name,
        owner=request.owner,
        token=FencingToken(request.token),
    )


def force_release(call: Call, request: ForceReleaseRequest) -> Release:
    """By an administrator. Without owner and token every grant of the lock ends."""
    if request.owner and not request.token:
        raise BadRequest("token: say which grant of the owner, or leave both out", field="token")
    name = checked_name(request.name)
    return Release(
        key=_key(call, request.request_id),
        digest=digest_of("force_release", name, request.owner, request.token),
        name=name,
        owner=request.owner,
        token=FencingToken(request.token),
        force=True,
    )


def renew(request: RenewRequest) -> Renew:
    """Idempotent, so it has no key."""
    return Renew(
        name=checked_name(request.name),
        owner=request.owner,
        token=FencingToken(request.token),
        ttl_ms=request.ttl_ms,
    )


def open_session(call: Call, request: SessionRequest) -> OpenSession:
    """Under an id minted here; a retry learns from the outcome which one its first attempt got."""
    return OpenSession(
        key=_key(call, request.request_id),
        digest=digest_of("session", request.ttl_ms),
        session=SessionId(secrets.token_hex(SESSION_ID_BYTES)),
        ttl_ms=request.ttl_ms,
    )


def close_session(call: Call, request: CloseSessionRequest) -> CloseSession:
    """Ends the session, its grants and its waits."""
    return CloseSession(
        key=_key(call, request.request_id),
        digest=digest_of("close_session", request.session),
        session=SessionId(request.session),
    )
