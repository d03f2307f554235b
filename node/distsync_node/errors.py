"""Every error a user can meet, as one tree.

    DistSyncError                      code, status, retriable
      BadRequest                 422   a field is wrong; names it
        MalformedRequest         400
        MalformedBody            400
        PayloadTooLarge          413
        PathTooLong              414
        UnsupportedMediaType     415
        RequestIdReused          422
        HeadersTooLarge          431
      Unauthorized               401   peer port without the shared secret
      NotFound                   404
        SessionNotFound, QueueNotFound, MessageNotFound
      MethodNotAllowed           405
      RequestTimeout             408   the request itself did not arrive in time
      Conflict                   409
        LockHeld, WaitTimeout, Cancelled, Deadlock, LockLost, LimitMismatch, NotHolder,
        SessionExists, ConfigConflict, ClusterMismatch, AlreadyBootstrapped,
        StaleReceipt, Fenced, MessageInFlight, ComputeTimeout, ComputeLost
      LineLost                   410
      VersionMismatch            412
      LimitReached               429
        QueueFull
      Unavailable                503   nothing was done; may be retried as it is
        NoLeader, Uninitialised, MemberRemoved, ShuttingDown, RedisUnavailable
      OutcomeUnknown             504   may have been done; retry only with the same request id
      DiskFull, RedisFull        507   nothing was done
    StartupError                       one clear line and exit code 2
    StorageFailed                      the disk failed under a running node: the node stops
    InvariantViolation                 a bug: the node stops

A class carries typed fields, not sentences; `detail` is built from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class DistSyncError(Exception):
    """Base of all operating errors."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    retriable: ClassVar[bool] = False

    def __init__(self, detail: str = "", **fields: Any) -> None:
        super().__init__(detail or self.code)
        self.detail = detail or self.code.replace("_", " ")
        self.fields = fields


class BadRequest(DistSyncError):
    """A field is missing, of the wrong type or out of range; `field` names it.

    Of a batch, `errors` tells of each item that is wrong.
    """

    code = "bad_request"
    status = 422


class MalformedRequest(BadRequest):
    """What came is not HTTP."""

    code = "malformed_request"
    status = 400


class MalformedBody(BadRequest):
    """The body is not JSON."""

    code = "malformed_body"
    status = 400


class PayloadTooLarge(BadRequest):
    """The body is larger than the limit."""

    code = "payload_too_large"
    status = 413


class PathTooLong(BadRequest):
    """The path and query are longer than the limit."""

    code = "path_too_long"
    status = 414


class UnsupportedMediaType(BadRequest):
    """The body is said to be something else than JSON in UTF-8."""

    code = "unsupported_media_type"
    status = 415


class HeadersTooLarge(BadRequest):
    """The headers are larger than the limit."""

    code = "headers_too_large"
    status = 431


class RequestIdReused(BadRequest):
    """The request id came before with another body."""

    code = "request_id_reused"


class NotFound(DistSyncError):
    """There is no such thing; of a key of the cache, `version` is that of its absence."""

    code = "not_found"
    status = 404


class SessionNotFound(NotFound):
    """The session was closed, has expired or never was."""

    code = "session_not_found"


class QueueNotFound(NotFound):
    """Nothing was ever pushed to a queue of that name, and it was not configured."""

    code = "queue_not_found"


class MessageNotFound(NotFound):
    """The queue has no message of that id, any more or ever."""

    code = "message_not_found"


class MethodNotAllowed(DistSyncError):
    """The path exists, but not with this method; `allow` lists those it has."""

    code = "method_not_allowed"
    status = 405


class RequestTimeout(DistSyncError):
    """The request did not arrive in time; nothing was done."""

    code = "request_timeout"
    status = 408
    retriable = True


class Conflict(DistSyncError):
    """The state of things does not allow it."""

    code = "conflict"
    status = 409


class LockHeld(Conflict):
    """Not available and the caller did not want to wait."""

    code = "lock_held"


class WaitTimeout(Conflict):
    """Not available within wait_ms."""

    code = "wait_timeout"


class Cancelled(Conflict):
    """The wait was cancelled: another attempt of the same request gave it up."""

    code = "cancelled"


class Deadlock(Conflict):
    """Waiting would close a cycle; `cycle` lists its owners."""

    code = "deadlock"


class LockLost(Conflict):
    """The grant of this request has ended."""

    code = "lock_lost"


class LimitMismatch(Conflict):
    """The semaphore's limit was fixed by its first holder."""

    code = "limit_mismatch"


class NotHolder(Conflict):
    """Owner and token do not name a current grant."""

    code = "not_holder"


class SessionExists(Conflict):
    """A session of that id is open."""

    code = "session_exists"


class ConfigConflict(Conflict):
    """The membership is not what the caller expected, or the change is not allowed now."""

    code = "config_conflict"


class ClusterMismatch(Conflict):
    """The message is for another cluster or another member (addresses get reused)."""

    code = "cluster_mismatch"


class AlreadyBootstrapped(Conflict):
    """This member belongs to a cluster already."""

    code = "already_bootstrapped"


class StaleReceipt(Conflict):
    """Receipts whose claim has ended; `stale` lists them. The others of the call were served."""

    code = "stale_receipt"


class Fenced(Conflict):
    """A newer grant of the lock was seen: `lock`, the `token` given and the `newest` seen."""

    code = "fenced"


class MessageInFlight(Conflict):
    """The message is claimed by a consumer."""

    code = "message_in_flight"


class ComputeTimeout(Conflict):
    """Another caller still computed the key after wait_ms."""

    code = "compute_timeout"
    retriable = True


class ComputeLost(Conflict):
    """The token is not that of the current computation of the key; nothing was written."""

    code = "compute_lost"


class LineLost(DistSyncError):
    """All nodes that had the newest value are gone; the next PUT or DELETE ends this."""

    code = "line_lost"
    status = 410


class VersionMismatch(DistSyncError):
    """The key has another `version` than if_version; nothing was written."""

    code = "version_mismatch"
    status = 412


class LimitReached(DistSyncError):
    """Too many waiters, locks, sessions or requests in flight; `limit` names which."""

    code = "limit_reached"
    status = 429
    retriable = True


class QueueFull(LimitReached):
    """The messages would exceed the queue's max_length; none of them was pushed."""

    code = "queue_full"


class Unavailable(DistSyncError):
    """Nothing was done; try again, here or elsewhere."""

    code = "unavailable"
    status = 503
    retriable = True


class NoLeader(Unavailable):
    """No leader is known, or it cannot be reached; nothing was proposed."""

    code = "no_leader"


class Uninitialised(Unavailable):
    """This node belongs to no cluster yet."""

    code = "uninitialised"


class MemberRemoved(Unavailable):
    """This node was removed from its cluster."""

    code = "member_removed"
    retriable = False


class ShuttingDown(Unavailable):
    """This node is stopping."""

    code = "shutting_down"


class RedisUnavailable(Unavailable):
    """Redis cannot be reached or does not serve; nothing was done."""

    code = "redis_unavailable"


class OutcomeUnknown(DistSyncError):
    """It may or may not have been done."""

    code = "outcome_unknown"
    status = 504
    retriable = True


class DiskFull(DistSyncError):
    """The node's disk is full; nothing was done."""

    code = "disk_full"
    status = 507
    retriable = True


class RedisFull(DistSyncError):
    """Redis has no memory left (maxmemory); nothing was done. Acks and pops still drain it."""

    code = "redis_full"
    status = 507
    retriable = True


class Unauthorized(DistSyncError):
    """The shared secret is missing or wrong."""

    code = "unauthorized"
    status = 401


class StartupError(Exception):
    """The node cannot start; the message is one line that says what to do. Exit code 2."""


class StorageFailed(Exception):
    """The disk failed (not: is full). What a failed sync left behind is unknown: the node stops."""


class InvariantViolation(Exception):
    """A promise of the code to itself is broken; the node stops rather than go on."""


def _codes(kind: type[DistSyncError]) -> dict[str, type[DistSyncError]]:
    found = {kind.code: kind}
    for child in kind.__subclasses__():
        found |= _codes(child)
    return found


_BY_CODE = _codes(DistSyncError)


def doubtful(error: DistSyncError) -> DistSyncError:
    """Return how to tell an error of a request of which something may have been done before.

    What is wrong with the request itself is wrong in any case. All else, and be it that nothing was
    done, is only true of the attempt that met it.
    """
    return error if isinstance(error, BadRequest) else OutcomeUnknown(error.detail)


@contextmanager
def after_a_change() -> Iterator[None]:
    """Tell errors of what is in here as those of a request of which something was done."""
    try:
        yield
    except DistSyncError as error:
        raise doubtful(error) from error


def error_of_code(code: str, detail: str, fields: dict[str, Any]) -> DistSyncError:
    """Return the error that another node told; one of an unknown code is internal."""
    return _BY_CODE.get(code, DistSyncError)(detail, **fields)
