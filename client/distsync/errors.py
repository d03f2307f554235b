"""Every error the client raises, as one tree.

    DistSyncError                    code, status, retriable, detail, fields
      BadRequest               422   `field` names what is wrong with the call, `errors` with
                                     each item of a batch
        PayloadTooLarge        413
        RequestIdReused        422
      NotFound                 404
        SessionNotFound        404
        QueueNotFound          404
        MessageNotFound        404   it is done, was cancelled, has expired, or never was
      LineLost                 410   the cached value was lost with the nodes that held it
      Conflict                 409
        LockHeld                     not available, and the call did not want to wait
        WaitTimeout                  not available within the wait
          ComputeTimeout             the same, for a value that another client computes
        Deadlock                     waiting would close a cycle; `cycle` names its owners
        LimitMismatch                the semaphore has another limit
        NotHolder                    owner and token name no current grant
        LockLost                     the lease ended, or may have ended, while it was in use
          SessionLost                the same, for a session and all it holds
        StaleReceipt                 claims of messages have ended; `stale` lists their receipts
          ClaimLost                  the claim ended, or may have ended, while it was in use
        Fenced                       the lock of a push or a write has a `newest` holder
        VersionMismatch        412   the cached value has another `version`
        ComputeLost                  the lease to compute the value had ended
        MessageInFlight              the message is claimed
      Unauthorized             401
      LimitReached             429   `limit` names which limit of the cluster
        QueueFull                    the queue holds its max_length; nothing was pushed
      Unavailable              503   nothing was done; the cluster could not be reached in time
        ClientClosed                 nothing was done; this client was closed
        RedisUnavailable             nothing was done; no node could use its Redis
      OutcomeUnknown           504   it may have been done: never read this as "it failed"
      DiskFull                 507   nothing was done
      RedisFull                507   nothing was done; acks and pops still drain it
      ServerError              500   the node reports a bug of its own

A class carries typed fields, not sentences; `code` and `status` are those of the HTTP API.
"""

from __future__ import annotations

from typing import Any, Final

from distsync.models import RefusedItem

__all__ = [
    "BadRequest",
    "ClaimLost",
    "ClientClosed",
    "ComputeLost",
    "ComputeTimeout",
    "Conflict",
    "Deadlock",
    "DiskFull",
    "DistSyncError",
    "Fenced",
    "LimitMismatch",
    "LimitReached",
    "LineLost",
    "LockHeld",
    "LockLost",
    "MessageInFlight",
    "MessageNotFound",
    "NotFound",
    "NotHolder",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "QueueFull",
    "QueueNotFound",
    "RedisFull",
    "RedisUnavailable",
    "RequestIdReused",
    "ServerError",
    "SessionLost",
    "SessionNotFound",
    "StaleReceipt",
    "Unauthorized",
    "Unavailable",
    "VersionMismatch",
    "WaitTimeout",
    "error_from_problem",
]


_SHOWN_ITEMS: Final = 5


class DistSyncError(Exception):
    """Base of all errors of this library.

    Attributes:
        code: the API's error code, such as `lock_held`.
        status: the HTTP status that goes with it.
        retriable: whether the same call may succeed later without a change.
        detail: one sentence for a person.
        fields: what else the answer said (`field`, `cycle`, `limit`, `request_id`, ...).
        after_doubt: whether an earlier attempt of the same call may have been done.
    """

    code: str = "error"
    status: int = 500
    retriable: bool = False
    after_doubt: bool = False

    def __init__(self, detail: str = "", **fields: Any) -> None:
        self.detail = detail or self.code.replace("_", " ")
        self.fields = fields
        super().__init__(self.detail)

    @property
    def request_id(self) -> str | None:
        """The id under which the node logged the request, if it said one."""
        value = self.fields.get("request_id")
        return value if isinstance(value, str) else None


class BadRequest(DistSyncError):
    """An argument is missing, of the wrong type or out of range; `field` names it.

    Of a batch, `errors` tells of each item that was wrong, and so does the text of the exception.
    """

    code = "bad_request"
    status = 422

    @property
    def field(self) -> str | None:
        """The field of the request that was refused."""
        value = self.fields.get("field")
        return value if isinstance(value, str) else None

    @property
    def errors(self) -> list[RefusedItem]:
        """The items of a batch that were wrong, in their order; none of the batch was done."""
        return list(self.fields.get("errors") or ())

    def __str__(self) -> str:
        told = list(dict.fromkeys([self.detail, *(item.detail for item in self.errors)]))
        more = len(told) - _SHOWN_ITEMS
        return "; ".join(told[:_SHOWN_ITEMS]) + (f"; and {more} more" if more > 0 else "")


class PayloadTooLarge(BadRequest):
    """The request is larger than the limit."""

    code = "payload_too_large"
    status = 413


class RequestIdReused(BadRequest):
    """The request id came before with another body."""

    code = "request_id_reused"


class NotFound(DistSyncError):
    """There is no such thing."""

    code = "not_found"
    status = 404


class SessionNotFound(NotFound):
    """The session was closed, has expired or never was."""

    code = "session_not_found"


class QueueNotFound(NotFound):
    """Nothing was ever pushed to a queue of that name, and it was not configured."""

    code = "queue_not_found"


class MessageNotFound(NotFound):
    """The message is done, was cancelled or has expired, or never was."""

    code = "message_not_found"


class LineLost(DistSyncError):
    """The cached value was lost with the nodes that held it; a `set` or `delete` ends this.

    It is not read as missing, and never as the older value that is still in Redis.
    """

    code = "line_lost"
    status = 410


class Conflict(DistSyncError):
    """The state of things does not allow it."""

    code = "conflict"
    status = 409


class LockHeld(Conflict):
    """The lock is not available and the call did not want to wait."""

    code = "lock_held"


class WaitTimeout(Conflict):
    """The lock did not become available within the wait."""

    code = "wait_timeout"


class Deadlock(Conflict):
    """Waiting would close a cycle of owners that wait for each other; `cycle` lists them."""

    code = "deadlock"

    @property
    def cycle(self) -> list[str]:
        """The owners of the cycle, the one who asked first."""
        return list(self.fields.get("cycle") or ())


class LimitMismatch(Conflict):
    """The semaphore's limit was fixed by its first holder and is another one."""

    code = "limit_mismatch"


class NotHolder(Conflict):
    """Owner and token do not name a current grant."""

    code = "not_holder"


class LockLost(Conflict):
    """The lease has ended, or can no longer be known to last, although it was still wanted.

    From that moment another owner may hold the lock. Writes that carry the fencing token are
    refused by whatever checks it; everything else the holder must stop by itself.
    """

    code = "lock_lost"


class SessionLost(LockLost):
    """The session has ended, and with it every lock that was held through it."""

    code = "session_lost"


class StaleReceipt(Conflict):
    """The claims of some messages have ended: they are delivered again, or are done.

    `stale` lists their receipts; what was asked was done for the others of the call.
    """

    code = "stale_receipt"

    @property
    def stale(self) -> list[str]:
        """The receipts whose claims have ended."""
        return list(self.fields.get("stale") or ())


class ClaimLost(StaleReceipt):
    """The claim of a message has ended, or can no longer be known to last, while it was in use.

    From that moment another consumer may be given the message.
    """

    code = "claim_lost"


class Fenced(Conflict):
    """The token of a push or a write is not the lock's newest grant; nothing was done."""

    code = "fenced"

    @property
    def newest(self) -> int | None:
        """The newest token of the lock that has been seen there, if the answer said so."""
        value = self.fields.get("newest")
        return value if isinstance(value, int) else None


class VersionMismatch(Conflict):
    """The cached value has another version than `if_version`; nothing was done."""

    code = "version_mismatch"
    status = 412

    @property
    def version(self) -> str | None:
        """The version it has, or had when it was deleted."""
        value = self.fields.get("version")
        return value if isinstance(value, str) else None


class ComputeTimeout(WaitTimeout):
    """Another client was still computing the value when the wait was over."""

    code = "compute_timeout"
    retriable = True


class ComputeLost(Conflict):
    """The lease to compute a value had ended when it was to be stored; nothing was stored."""

    code = "compute_lost"


class MessageInFlight(Conflict):
    """The message is claimed, so it cannot be taken out."""

    code = "message_in_flight"


class Unauthorized(DistSyncError):
    """The call needs a secret that was missing or wrong."""

    code = "unauthorized"
    status = 401


class LimitReached(DistSyncError):
    """Too many waiters, locks, sessions or requests; `limit` names which."""

    code = "limit_reached"
    status = 429
    retriable = True

    @property
    def limit(self) -> str | None:
        """The limit that was reached."""
        value = self.fields.get("limit")
        return value if isinstance(value, str) else None


class QueueFull(LimitReached):
    """The messages would exceed the queue's max_length; none of them was pushed."""

    code = "queue_full"


class Unavailable(DistSyncError):
    """Nothing was done: no node could take the call before its deadline."""

    code = "unavailable"
    status = 503
    retriable = True


class ClientClosed(Unavailable):
    """Nothing was done: this client has been closed."""

    code = "client_closed"
    retriable = False


class RedisUnavailable(Unavailable):
    """Nothing was done: no node could use its Redis before the deadline."""

    code = "redis_unavailable"


class OutcomeUnknown(DistSyncError):
    """The call may or may not have been done; no answer came before its deadline."""

    code = "outcome_unknown"
    status = 504
    retriable = True


class DiskFull(DistSyncError):
    """The disk of the node is full; nothing was done."""

    code = "disk_full"
    status = 507
    retriable = True


class RedisFull(DistSyncError):
    """Redis has no memory left; nothing was done. Acks and pops still drain it."""

    code = "redis_full"
    status = 507
    retriable = True


class ServerError(DistSyncError):
    """The node reports a bug of its own; whether the call was done is not known."""

    code = "internal"


def _codes(root: type[DistSyncError]) -> dict[str, type[DistSyncError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _codes(child)
    return found


_BY_CODE = _codes(DistSyncError)
_BY_STATUS: dict[int, type[DistSyncError]] = {
    401: Unauthorized,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    429: LimitReached,
    503: Unavailable,
    504: OutcomeUnknown,
    507: DiskFull,
}


def error_from_problem(
    *, status: int, code: str, detail: str, retriable: bool, fields: dict[str, Any]
) -> DistSyncError:
    """Build the error of a problem+json answer; a code from a newer node keeps its name."""
    kind = _BY_CODE.get(code)
    if kind is None:
        fallback = BadRequest if 400 <= status < 500 else ServerError
        kind = _BY_STATUS.get(status, fallback)
    error = kind(detail, **fields)
    error.code, error.status, error.retriable = code, status, retriable
    return error
