"""What the lock state machine is told, and what it answers.

Commands are replicated, so they are `msgspec.Struct`s with short tags; a log entry of kind COMMANDS
carries a msgpack array of them under one stamp. Durations are milliseconds; deadlines are leader
time in milliseconds. Tokens stay below 2^53.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NewType, TypeAlias

import msgspec

FencingToken = NewType("FencingToken", int)
SessionId = NewType("SessionId", str)


class LockMode(IntEnum):
    """How a lock is held. A counting semaphore is SHARED with a limit."""

    EXCLUSIVE = 0
    SHARED = 1


class RequestKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Names one request of one client; retries of it carry the same key."""

    client: str
    request: str


class _Command(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    pass


class _Keyed(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """A command that is remembered: the same key with another digest is refused."""

    key: RequestKey
    digest: bytes  # 8 bytes of a hash over what the user asked for, without the key


class Acquire(_Keyed, frozen=True, tag="a"):
    """Take every lock of `names` in one step, or wait for them (wait_ms > 0) as one FIFO request.

    Exactly one of `ttl_ms` (> 0) and `session` decides how long the grant lives: with a session it
    lives while the session does and `ttl_ms` is 0. `limit` makes a SHARED lock a semaphore.
    """

    names: tuple[str, ...]
    owner: str
    mode: LockMode
    ttl_ms: int
    wait_ms: int
    limit: int | None = None
    session: SessionId | None = None


class Upgrade(_Keyed, frozen=True, tag="u"):
    """Turn a shared grant into an exclusive one under a new token; waits at the head."""

    name: str
    owner: str
    token: FencingToken
    wait_ms: int


class Downgrade(_Keyed, frozen=True, tag="d"):
    """Turn an exclusive grant into a shared one; the token stays, waiting readers may enter.

    The outcome is a Granted of mode SHARED with the old token and deadline."""

    name: str
    owner: str
    token: FencingToken


class Release(_Keyed, frozen=True, tag="r"):
    """End a grant. `force` (an administrator's call) ends it whoever holds it with that token;
    with `force`, owner "" and token 0 every grant of the lock ends."""

    name: str
    owner: str
    token: FencingToken
    force: bool = False


class Renew(_Command, frozen=True, tag="n"):
    """Set the deadline of a grant to stamp + ttl_ms. Idempotent, so it needs no key."""

    name: str
    owner: str
    token: FencingToken
    ttl_ms: int


class OpenSession(_Keyed, frozen=True, tag="o"):
    """Open a session under the id given (minted by the node that took the request)."""

    session: SessionId
    ttl_ms: int


class KeepAlive(_Command, frozen=True, tag="k"):
    """Set the deadline of each session to stamp + its ttl."""

    sessions: tuple[SessionId, ...]


class CloseSession(_Keyed, frozen=True, tag="c"):
    """End a session, its grants and its waits."""

    session: SessionId


class Cancel(_Command, frozen=True, tag="x"):
    """The connection of an attempt is gone: remove the waiting request if that is still its
    latest attempt. Never ends a grant."""

    key: RequestKey
    attempt: int


class RaiseTokens(_Command, frozen=True, tag="t"):
    """Issue only tokens above `above` from now on. Idempotent, so it needs no key.

    An administrator's call: neither a cluster restored from a backup nor one that was made anew can
    know the tokens issued since or before."""

    above: FencingToken


class ExpiredGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A grant whose deadline the leader saw pass."""

    name: str
    owner: str
    token: FencingToken
    deadline_ms: int


class ExpiredSession(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A session whose deadline the leader saw pass."""

    session: SessionId
    deadline_ms: int


class ExpiredWait(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A waiting request whose wait deadline the leader saw pass."""

    key: RequestKey
    deadline_ms: int


class Expire(_Command, frozen=True, tag="e"):
    """End what is still exactly as named: a renewal in between makes an item a no-op."""

    grants: tuple[ExpiredGrant, ...] = ()
    sessions: tuple[ExpiredSession, ...] = ()
    waits: tuple[ExpiredWait, ...] = ()


LockCommand: TypeAlias = (
    Acquire
    | Upgrade
    | Downgrade
    | Release
    | Renew
    | OpenSession
    | KeepAlive
    | CloseSession
    | Cancel
    | RaiseTokens
    | Expire
)


# --- Outcomes -------------------------------------------------------------------------------
# One outcome a command; for a request that waits, `Waiting` now and a `Notice` later. They are
# Structs because a retried request is answered from the remembered outcome (in the snapshot) and
# because a node that forwards a command gets its outcome over the wire.


class _Outcome(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    pass


class Grant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One granted lock."""

    name: str
    token: FencingToken


class Granted(_Outcome, frozen=True, tag="G"):
    """All locks of the request are held until `deadline_ms` (of the grant, or of its session)."""

    owner: str
    mode: LockMode
    grants: tuple[Grant, ...]
    deadline_ms: int


class Waiting(_Outcome, frozen=True, tag="W"):
    """The request is queued; this attach of it is number `attempt` (1 for the first)."""

    attempt: int


class Done(_Outcome, frozen=True, tag="D"):
    """Released, closed, cancelled, kept alive or expired; `deadline_ms` where a lease was set.

    For KeepAlive, `deadline_ms` is the earliest one set and `missing` names the sessions that no
    longer exist. For OpenSession, `session` is the session that is open under this key: a retry
    through another node minted an id of its own, which was not used.
    """

    deadline_ms: int = 0
    missing: tuple[SessionId, ...] = ()
    session: SessionId | None = None


class RefusalCode(IntEnum):
    """Why a command changed nothing. The names in lower case are the API's error codes."""

    LOCK_HELD = 0  # wait_ms = 0 and not available
    WAIT_TIMEOUT = 1
    DEADLOCK = 2  # `cycle` holds the owners of the cycle, the requester first
    LOCK_LOST = 3  # a retried acquire whose grant has ended
    LIMIT_MISMATCH = 4
    NOT_HOLDER = 5
    REQUEST_ID_REUSED = 6  # same key, other digest
    SESSION_NOT_FOUND = 7
    TOO_MANY_WAITERS = 8
    TOO_MANY_LOCKS = 9
    CANCELLED = 10  # the wait was cancelled (its client is gone)
    TOO_MANY_SESSIONS = 11
    SESSION_EXISTS = 12


class Refused(_Outcome, frozen=True, tag="R"):
    """Nothing changed (but a wait that timed out or was cancelled has left the queue)."""

    code: RefusalCode
    name: str = ""
    cycle: tuple[str, ...] = ()


Outcome: TypeAlias = Granted | Waiting | Done | Refused


class Notice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The final outcome of a request that was Waiting."""

    key: RequestKey
    attempt: int
    outcome: Granted | Refused
