"""The hot endpoints: take, keep and give back locks and sessions.

Each decodes its request, makes a command of it, lets the node run it and encodes the outcome. A
refusal is raised as the error it is; the gateway makes a problem of it.
"""

from __future__ import annotations

from typing import assert_never

import msgspec
from msgspec.json import Decoder

from distsync_node.api import ingress
from distsync_node.api.call import Bodies, Call, Patience
from distsync_node.api.options import ApiOptions
from distsync_node.api.schemas import (
    AcquireManyRequest,
    AcquireRequest,
    ClosedResponse,
    CloseSessionRequest,
    DowngradeRequest,
    GrantResponse,
    KeepAliveRequest,
    ManyGrantResponse,
    Mode,
    NamedToken,
    ReleasedResponse,
    ReleaseRequest,
    RenewedResponse,
    RenewRequest,
    SessionRequest,
    SessionResponse,
    UpgradeRequest,
)
from distsync_node.errors import (
    Cancelled,
    Deadlock,
    DistSyncError,
    InvariantViolation,
    LimitMismatch,
    LimitReached,
    LockHeld,
    LockLost,
    NotHolder,
    RequestIdReused,
    SessionExists,
    SessionNotFound,
    WaitTimeout,
)
from distsync_node.locks.commands import (
    Done,
    Granted,
    KeepAlive,
    LockCommand,
    LockMode,
    Outcome,
    RefusalCode,
    Refused,
    SessionId,
    Waiting,
)
from distsync_node.services.interface import CommandReply, Node

encode = msgspec.json.Encoder().encode

_MODE_NAMES: dict[LockMode, Mode] = {LockMode.EXCLUSIVE: "exclusive", LockMode.SHARED: "shared"}


def mode_name(mode: LockMode) -> Mode:
    """Return what the API calls this mode."""
    return _MODE_NAMES[mode]


def refusal(outcome: Refused) -> DistSyncError:
    """Return the error of a refusal."""
    name = outcome.name
    match outcome.code:
        case RefusalCode.LOCK_HELD:
            return LockHeld(f"lock {name!r} is not available; use wait_ms to wait for it")
        case RefusalCode.WAIT_TIMEOUT:
            return WaitTimeout(f"lock {name!r} did not become available within wait_ms")
        case RefusalCode.DEADLOCK:
            cycle = " -> ".join((*outcome.cycle, *outcome.cycle[:1]))
            return Deadlock(
                f"to wait for lock {name!r} would close the cycle {cycle}",
                cycle=list(outcome.cycle),
            )
        case RefusalCode.LOCK_LOST:
            return LockLost("this request was granted before, and that grant has ended")
        case RefusalCode.LIMIT_MISMATCH:
            return LimitMismatch(f"lock {name!r} has another limit, fixed by its first holder")
        case RefusalCode.NOT_HOLDER:
            return NotHolder(f"owner and token name no current grant of lock {name!r}")
        case RefusalCode.REQUEST_ID_REUSED:
            return RequestIdReused(
                "request_id: came before with another body; each request needs its own",
                field="request_id",
            )
        case RefusalCode.SESSION_NOT_FOUND:
            return SessionNotFound("the session was closed, has expired or never was")
        case RefusalCode.TOO_MANY_WAITERS:
            return LimitReached("too many requests wait for locks", limit="waiters")
        case RefusalCode.TOO_MANY_LOCKS:
            return LimitReached("too many locks are held", limit="locks")
        case RefusalCode.TOO_MANY_SESSIONS:
            return LimitReached("too many sessions are open", limit="sessions")
        case RefusalCode.SESSION_EXISTS:
            return SessionExists("a session of that request_id is open")
        case RefusalCode.CANCELLED:
            return Cancelled("the wait was cancelled: its client has gone away")
        case _:
            assert_never(outcome.code)


def granted(outcome: Outcome) -> Granted:
    """Return the outcome of a request for locks.

    Raises:
        DistSyncError: it was refused.
    """
    if isinstance(outcome, Granted):
        return outcome
    raise _unexpected(outcome)


def done(outcome: Outcome) -> Done:
    """Return the outcome of any other request.

    Raises:
        DistSyncError: it was refused.
    """
    if isinstance(outcome, Done):
        return outcome
    raise _unexpected(outcome)


def _unexpected(outcome: Outcome) -> DistSyncError | InvariantViolation:
    match outcome:
        case Refused():
            return refusal(outcome)
        case Waiting() | Granted() | Done():
            return InvariantViolation(f"not the final outcome of this request: {outcome}")
        case _:
            assert_never(outcome)


class LockEndpoints:
    """POST /lock/... and /session..."""

    def __init__(self, node: Node, options: ApiOptions, patience: Patience, bodies: Bodies) -> None:
        self._node = node
        self._timeout_ms = options.command_timeout_ms
        self._patience = patience
        self._bodies = bodies
        self._acquire = Decoder(AcquireRequest)
        self._acquire_many = Decoder(AcquireManyRequest)
        self._upgrade = Decoder(UpgradeRequest)
        self._downgrade = Decoder(DowngradeRequest)
        self._release = Decoder(ReleaseRequest)
        self._renew = Decoder(RenewRequest)
        self._open = Decoder(SessionRequest)
        self._keep_alive = Decoder(KeepAliveRequest)
        self._close = Decoder(CloseSessionRequest)

    async def acquire(self, call: Call) -> bytes:
        """POST /lock/acquire"""
        request = await self._bodies.read(call, self._acquire)
        command = ingress.acquire(call, request)
        reply = await self._submit(call, command, request.wait_ms)
        return _grant(granted(reply.outcome), reply.remaining_ms)

    async def acquire_many(self, call: Call) -> bytes:
        """POST /lock/acquire_many"""
        request = await self._bodies.read(call, self._acquire_many)
        command = ingress.acquire_many(call, request)
        reply = await self._submit(call, command, request.wait_ms)
        outcome = granted(reply.outcome)
        return encode(
            ManyGrantResponse(
                owner=outcome.owner,
                mode=_MODE_NAMES[outcome.mode],
                locks=[NamedToken(name=grant.name, token=grant.token) for grant in outcome.grants],
                expires_in_ms=reply.remaining_ms,
            )
        )

    async def upgrade(self, call: Call) -> bytes:
        """POST /lock/upgrade"""
        request = await self._bodies.read(call, self._upgrade)
        reply = await self._submit(call, ingress.upgrade(call, request), request.wait_ms)
        return _grant(granted(reply.outcome), reply.remaining_ms)

    async def downgrade(self, call: Call) -> bytes:
        """POST /lock/downgrade"""
        request = await self._bodies.read(call, self._downgrade)
        reply = await self._submit(call, ingress.downgrade(call, request))
        return _grant(granted(reply.outcome), reply.remaining_ms)

    async def release(self, call: Call) -> bytes:
        """POST /lock/release"""
        request = await self._bodies.read(call, self._release)
        reply = await self._submit(call, ingress.release(call, request))
        done(reply.outcome)
        return _RELEASED

    async def renew(self, call: Call) -> bytes:
        """POST /lock/renew"""
        request = await self._bodies.read(call, self._renew)
        reply = await self._submit(call, ingress.renew(request))
        done(reply.outcome)
        return encode(
            RenewedResponse(
                name=request.name,
                owner=request.owner,
                token=request.token,
                expires_in_ms=reply.remaining_ms,
            )
        )

    async def open_session(self, call: Call) -> bytes:
        """POST /session"""
        request = await self._bodies.read_optional(call, self._open)
        command = ingress.open_session(call, request)
        reply = await self._submit(call, command)
        session = done(reply.outcome).session or command.session
        return _session(session, reply.remaining_ms)

    async def keep_alive(self, call: Call) -> bytes:
        """POST /session/keepalive"""
        request = await self._bodies.read(call, self._keep_alive)
        session = SessionId(request.session)
        reply = await self._submit(call, KeepAlive(sessions=(session,)))
        if session in done(reply.outcome).missing:
            raise refusal(Refused(code=RefusalCode.SESSION_NOT_FOUND))
        return _session(session, reply.remaining_ms)

    async def close_session(self, call: Call) -> bytes:
        """POST /session/close"""
        request = await self._bodies.read(call, self._close)
        reply = await self._submit(call, ingress.close_session(call, request))
        done(reply.outcome)
        return _CLOSED

    async def _submit(self, call: Call, command: LockCommand, wait_ms: int = 0) -> CommandReply:
        """Run a command; while it may wait, a client that goes away cancels it."""
        if wait_ms == 0:
            return await self._node.submit(command, timeout_ms=self._timeout_ms)
        self._patience.begin_waiting(call)
        try:
            return await self._node.submit(command, timeout_ms=self._timeout_ms)
        finally:
            self._patience.end(call)


_RELEASED = encode(ReleasedResponse())
_CLOSED = encode(ClosedResponse())


def _grant(outcome: Granted, remaining_ms: int) -> bytes:
    grant = outcome.grants[0]
    return encode(
        GrantResponse(
            name=grant.name,
            owner=outcome.owner,
            mode=_MODE_NAMES[outcome.mode],
            token=grant.token,
            expires_in_ms=remaining_ms,
        )
    )


def _session(session: SessionId, remaining_ms: int) -> bytes:
    return encode(SessionResponse(session=session, expires_in_ms=remaining_ms))
