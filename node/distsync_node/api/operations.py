"""Every operation of the API, as its users read of it; `openapi.py` writes the document."""

from __future__ import annotations

from typing import Any

import msgspec

from distsync_node import errors
from distsync_node.api import schemas
from distsync_node.api.cache_operations import CACHE_OPERATIONS
from distsync_node.api.operation import ALWAYS, BODY, LIMITED, NODE, Errors, Operation
from distsync_node.api.queue_operations import QUEUE_OPERATIONS

_COMMAND: Errors = (*LIMITED, *BODY, *NODE, errors.OutcomeUnknown, errors.DiskFull)
_KEYED: Errors = (*_COMMAND, errors.RequestIdReused)
_WAITING: Errors = (
    *_KEYED,
    errors.LockHeld,
    errors.WaitTimeout,
    errors.Deadlock,
    errors.LockLost,
    errors.Cancelled,
)

_GRANT = {
    "name": "orders/42",
    "owner": "worker-7",
    "mode": "exclusive",
    "token": 1842,
    "expires_in_ms": 10_000,
}
_SHARED = {**_GRANT, "name": "gpu-pool", "mode": "shared"}
_HELD = {"name": "orders/42", "owner": "worker-7", "token": 1842}
_LOCK = {
    "name": "orders/42",
    "mode": "exclusive",
    "limit": None,
    "token": 1842,
    "holders": [
        {
            "owner": "worker-7",
            "mode": "exclusive",
            "token": 1842,
            "expires_in_ms": 8_213,
            "session": None,
        }
    ],
    "waiters": [
        {
            "owner": "worker-9",
            "mode": "exclusive",
            "position": 0,
            "gives_up_in_ms": 4_200,
            "upgrade": False,
        }
    ],
    "waiter_count": 1,
    "holder_count": 1,
}
_FREE_LOCK: dict[str, Any] = {
    "name": "orders/43",
    "mode": None,
    "limit": None,
    "token": None,
    "holders": [],
    "waiters": [],
    "waiter_count": 0,
    "holder_count": 0,
}
_SESSION = {"session": "6f1c0b3a9d2e4f5867a1b2c3d4e5f607"}
_MEMBER = {
    "id": "m-3f9a6c21",
    "name": "node-1",
    "peer_url": "http://10.0.0.11:8180",
    "client_url": "http://10.0.0.11:8080",
}
_MEMBER_VIEW = {
    **_MEMBER,
    "voter": True,
    "role": "leader",
    "match_index": 1_204,
    "progress": "replicate",
    "last_contact_ms": 12,
}
_STATUS = {
    "node": "node-1",
    "member_id": "m-3f9a6c21",
    "state": "member",
    "role": "leader",
    "leader": "node-1",
    "leader_url": "http://10.0.0.11:8080",
    "term": 3,
    "commit_index": 1_204,
    "applied_index": 1_204,
    "config_index": 7,
    "cluster_id": "c-9be14d",
    "cluster_version": 1,
    "version": "0.1.0",
    "ready": True,
    "serving": True,
    "ring_epoch": 3,
    "disk_full": False,
    "members": [_MEMBER_VIEW],
    "locks": 12,
    "waiters": 1,
    "sessions": 4,
}
_CONFIGURATION = {"config_index": 9, "members": [_MEMBER_VIEW]}

_LOCK_NAME = ("name", schemas.Name, "orders/42")

_RETRIES = (
    " A retry with the same `request_id` (and the same `Distsync-Client` header) is not done twice:"
    " it is answered as the first attempt was, while that answer holds."
)

LOCK_OPERATIONS = (
    Operation(
        method="POST",
        path="/lock/acquire",
        id="acquire",
        tag="locks",
        summary="Take a lock, or wait for it",
        description=(
            "Exclusive by default; `mode: shared` admits other shared holders, up to `limit` if one"
            " is given (a counting semaphore, its limit fixed by the first holder). The lease lasts"
            " `ttl_ms`, or as long as `session` lives: with a session, `ttl_ms` plays no part."
            " Waiting is first come, first served; closing the connection cancels it. Count"
            " `expires_in_ms` from when you sent the request." + _RETRIES
        ),
        request=schemas.AcquireRequest,
        requests={
            "exclusive": {"name": "orders/42", "owner": "worker-7"},
            "waiting": {
                "name": "orders/42",
                "owner": "worker-7",
                "ttl_ms": 30_000,
                "wait_ms": 5_000,
                "request_id": "5f0c2a",
            },
            "semaphore": {
                "name": "gpu-pool",
                "owner": "worker-7",
                "mode": "shared",
                "limit": 4,
            },
        },
        response=schemas.GrantResponse,
        answers={"granted": _GRANT},
        errors=(*_WAITING, errors.SessionNotFound, errors.LimitMismatch),
    ),
    Operation(
        method="POST",
        path="/lock/acquire_many",
        id="acquire_many",
        tag="locks",
        summary="Take several locks in one step",
        description="All of them or none; waits for all of them as one request." + _RETRIES,
        request=schemas.AcquireManyRequest,
        requests={"two": {"names": ["accounts/1", "accounts/2"], "owner": "worker-7"}},
        response=schemas.ManyGrantResponse,
        answers={
            "granted": {
                "owner": "worker-7",
                "mode": "exclusive",
                "locks": [
                    {"name": "accounts/1", "token": 1843},
                    {"name": "accounts/2", "token": 1844},
                ],
                "expires_in_ms": 10_000,
            }
        },
        errors=(*_WAITING, errors.SessionNotFound, errors.LimitMismatch),
    ),
    Operation(
        method="POST",
        path="/lock/upgrade",
        id="upgrade",
        tag="locks",
        summary="Turn a shared grant into an exclusive one",
        description="Under a new token; waits ahead of everybody for the other holders." + _RETRIES,
        request=schemas.UpgradeRequest,
        requests={"now": {**_HELD, "name": "gpu-pool"}},
        response=schemas.GrantResponse,
        answers={"granted": {**_SHARED, "mode": "exclusive", "token": 1850}},
        errors=(*_WAITING, errors.NotHolder),
    ),
    Operation(
        method="POST",
        path="/lock/downgrade",
        id="downgrade",
        tag="locks",
        summary="Turn an exclusive grant into a shared one",
        description="The token stays; waiting readers may enter." + _RETRIES,
        request=schemas.DowngradeRequest,
        requests={"now": _HELD},
        response=schemas.GrantResponse,
        answers={"granted": {**_GRANT, "mode": "shared"}},
        errors=(*_KEYED, errors.NotHolder, errors.LockLost, errors.LimitMismatch),
    ),
    Operation(
        method="POST",
        path="/lock/release",
        id="release",
        tag="locks",
        summary="Give a lock back",
        description="Only the grant that owner and token name." + _RETRIES,
        request=schemas.ReleaseRequest,
        requests={"now": _HELD},
        response=schemas.ReleasedResponse,
        answers={"released": {"released": True}},
        errors=(*_KEYED, errors.NotHolder),
    ),
    Operation(
        method="POST",
        path="/lock/renew",
        id="renew",
        tag="locks",
        summary="Prolong a lease",
        description="It lasts `ttl_ms` from now; that of a session's grant is its session's.",
        request=schemas.RenewRequest,
        requests={"ten seconds": {**_HELD, "ttl_ms": 10_000}},
        response=schemas.RenewedResponse,
        answers={"renewed": {**_HELD, "expires_in_ms": 10_000}},
        errors=(*_COMMAND, errors.NotHolder),
    ),
    Operation(
        method="GET",
        path="/lock/{name}",
        id="read_lock",
        tag="locks",
        summary="Read a lock",
        description="Linearizable. A lock that nobody holds or wants is free, not missing.",
        response=schemas.LockResponse,
        answers={"held": _LOCK, "free": _FREE_LOCK},
        path_parameters=(_LOCK_NAME,),
        errors=(*LIMITED, *NODE),
    ),
    Operation(
        method="GET",
        path="/locks",
        id="list_locks",
        tag="locks",
        summary="List locks that are held or waited for",
        description="By name. Pass `next` as `after` to get the next page; null is the end.",
        response=schemas.LocksResponse,
        answers={"page": {"locks": [_LOCK], "next": None}},
        query=schemas.LocksQuery,
        errors=(*LIMITED, *NODE),
    ),
    Operation(
        method="GET",
        path="/lock/{name}/watch",
        id="watch_lock",
        tag="locks",
        summary="Watch a lock",
        description=(
            "Server-sent events named `lock` with the lock as data: one at once, then one whenever"
            " holders or waiters have changed (several changes may come as one). A comment every"
            " 15 s says that nothing has; a node that cannot have the leader confirm that ends the"
            " stream."
        ),
        response="text/event-stream",
        schema={
            "type": "object",
            "description": "One event; `data` is a LockResponse as JSON",
            "properties": {
                "event": {"const": "lock"},
                "data": {
                    "type": "string",
                    "contentMediaType": "application/json",
                    "contentSchema": {"$ref": "#/components/schemas/LockResponse"},
                },
            },
            "required": ["event", "data"],
        },
        answers={"event": {"event": "lock", "data": msgspec.json.encode(_FREE_LOCK).decode()}},
        path_parameters=(_LOCK_NAME,),
        errors=(*LIMITED, *NODE),
    ),
)

SESSION_OPERATIONS = (
    Operation(
        method="POST",
        path="/session",
        id="open_session",
        tag="sessions",
        summary="Open a session",
        description=(
            "Locks taken with it live as long as it does, so one keep-alive keeps them all."
            + _RETRIES
        ),
        request=schemas.SessionRequest,
        is_body_optional=True,
        requests={"ten seconds": {"ttl_ms": 10_000}},
        response=schemas.SessionResponse,
        answers={"open": {**_SESSION, "expires_in_ms": 10_000}},
        errors=(*_KEYED, errors.SessionNotFound, errors.SessionExists),
    ),
    Operation(
        method="POST",
        path="/session/keepalive",
        id="keep_session_alive",
        tag="sessions",
        summary="Prolong a session",
        description="It lasts its `ttl_ms` from now.",
        request=schemas.KeepAliveRequest,
        requests={"now": _SESSION},
        response=schemas.SessionResponse,
        answers={"alive": {**_SESSION, "expires_in_ms": 10_000}},
        errors=(*_COMMAND, errors.SessionNotFound),
    ),
    Operation(
        method="POST",
        path="/session/close",
        id="close_session",
        tag="sessions",
        summary="Close a session",
        description="Ends its grants and its waits." + _RETRIES,
        request=schemas.CloseSessionRequest,
        requests={"now": _SESSION},
        response=schemas.ClosedResponse,
        answers={"closed": {"closed": True}},
        errors=(*_KEYED, errors.SessionNotFound),
    ),
)

_RING = {
    "epoch": 3,
    "virtual_nodes": 160,
    "servers": [
        {
            "name": "node-1",
            "member_id": "m-3f9a6c21",
            "incarnation": 5126933103096310,
            "weight": 1.0,
            "share": 1.0,
            "client_url": "http://node-1:8080",
        }
    ],
    "key": "emails",
    "owner": "node-1",
}

NODE_OPERATIONS = (
    Operation(
        method="GET",
        path="/cluster/status",
        id="cluster_status",
        tag="cluster",
        summary="Read this node's view of the cluster",
        description="Served without asking others, so it answers during an outage.",
        response=schemas.StatusResponse,
        answers={"leader": _STATUS},
        errors=LIMITED,
    ),
    Operation(
        method="GET",
        path="/cluster/ring",
        id="cluster_ring",
        tag="cluster",
        summary="Read the ring and who owns a key",
        description="Served without asking others. A name is owned by the first virtual node"
        " clockwise of it; each change of the ring has an epoch of its own.",
        query=schemas.RingQuery,
        response=schemas.RingResponse,
        answers={"one_node": _RING},
        errors=(*LIMITED, errors.BadRequest),
    ),
    Operation(
        method="GET",
        path="/healthz",
        id="health",
        tag="node",
        summary="Whether the process answers",
        response=schemas.HealthResponse,
        answers={"ok": {"status": "ok"}},
        errors=ALWAYS,
    ),
    Operation(
        method="GET",
        path="/readyz",
        id="ready",
        tag="node",
        summary="Whether the node serves",
        description="503 until it is a member that has heard a leader once, or for ten seconds"
        " none, and while it drains. Without a quorum it serves queues, so it stays ready.",
        response=schemas.ReadyResponse,
        answers={"ready": {"status": "ready"}},
        errors=(*ALWAYS, *NODE),
    ),
    Operation(
        method="GET",
        path="/metrics",
        id="metrics",
        tag="node",
        summary="Metrics for Prometheus",
        response="text/plain",
        answers={"some": "distsync_raft_has_leader 1.0\n"},
        errors=ALWAYS,
    ),
)

PUBLIC_OPERATIONS = (
    *LOCK_OPERATIONS,
    *SESSION_OPERATIONS,
    *QUEUE_OPERATIONS,
    *CACHE_OPERATIONS,
    *NODE_OPERATIONS,
)

_MEMBER_ID = ("id", schemas.MemberIdText, "m-3f9a6c21")
_ADMIN: Errors = (
    *LIMITED,
    *NODE,
    errors.Unauthorized,
    errors.OutcomeUnknown,
    errors.DiskFull,
)
_CHANGE: Errors = (*_ADMIN, errors.ConfigConflict)

_IDENTITY = {
    "member_id": "m-3f9a6c21",
    "name": "node-1",
    "state": "member",
    "cluster_id": "c-9be14d",
    "config_index": 7,
    "members": [_MEMBER],
    "leader": "node-1",
    "peer_url": _MEMBER["peer_url"],
    "client_url": _MEMBER["client_url"],
}

PEER_OPERATIONS = (
    Operation(
        method="GET",
        path="/cluster/identity",
        id="identity",
        tag="administration",
        summary="Who listens here",
        response=schemas.IdentityResponse,
        answers={"member": _IDENTITY},
        errors=(*LIMITED, errors.Unauthorized),
    ),
    Operation(
        method="POST",
        path="/cluster/bootstrap",
        id="bootstrap",
        tag="administration",
        summary="Create the cluster on this member",
        description=(
            "Idempotent. Send it only after every listed member has answered `uninitialised`."
        ),
        request=schemas.BootstrapRequest,
        requests={"one": {"cluster_id": "c-9be14d", "members": [_MEMBER]}},
        response=schemas.IdentityResponse,
        answers={"created": {**_IDENTITY, "config_index": 1, "leader": None}},
        errors=(
            *_ADMIN,
            *BODY,
            errors.ConfigConflict,
            errors.AlreadyBootstrapped,
            errors.ClusterMismatch,
        ),
    ),
    Operation(
        method="POST",
        path="/cluster/members",
        id="add_member",
        tag="administration",
        summary="Add a learner",
        request=schemas.AddMemberRequest,
        requests={"learner": {**_MEMBER, "expected_config_index": 7}},
        response=schemas.ConfigurationResponse,
        answers={"added": _CONFIGURATION},
        errors=(*_CHANGE, *BODY),
    ),
    Operation(
        method="DELETE",
        path="/cluster/members/{id}",
        id="remove_member",
        tag="administration",
        summary="Remove a member for ever",
        response=schemas.ConfigurationResponse,
        answers={"removed": _CONFIGURATION},
        query=schemas.ChangeMemberRequest,
        path_parameters=(_MEMBER_ID,),
        errors=_CHANGE,
    ),
    *(
        Operation(
            method="POST",
            path=f"/cluster/members/{{id}}/{verb}",
            id=f"{verb}_member",
            tag="administration",
            summary=summary,
            request=schemas.ChangeMemberRequest,
            is_body_optional=True,
            requests={"checked": {"expected_config_index": 7}},
            response=schemas.ConfigurationResponse,
            answers={f"{verb}d": _CONFIGURATION},
            path_parameters=(_MEMBER_ID,),
            errors=(*_CHANGE, *BODY),
        )
        for verb, summary in (
            ("promote", "Make a learner a voter"),
            ("demote", "Make a voter a learner"),
        )
    ),
    Operation(
        method="POST",
        path="/cluster/transfer",
        id="transfer",
        tag="administration",
        summary="Hand leadership over",
        description="To `target`, or to the most advanced voter.",
        request=schemas.TransferRequest,
        is_body_optional=True,
        requests={"anyone": {}, "someone": {"target": "m-3f9a6c21"}},
        response=schemas.TransferResponse,
        answers={"done": {"leader": "node-1", "member_id": "m-3f9a6c21"}},
        errors=(*_CHANGE, *BODY),
    ),
    Operation(
        method="POST",
        path="/cluster/drain",
        id="drain",
        tag="administration",
        summary="Have this node become unready and leave the ring",
        description=(
            "It leaves when Redis has everything that only its cache has, which this answer does "
            "not wait for. It goes on forwarding, and votes; only a restart makes it serve again."
        ),
        response=schemas.IdentityResponse,
        answers={"draining": {**_IDENTITY, "draining": True}},
        errors=_CHANGE,
    ),
    Operation(
        method="POST",
        path="/cluster/archive",
        id="archive",
        tag="administration",
        summary="Put a removed member's data aside",
        description="The node starts empty after it.",
        response=schemas.ArchiveResponse,
        answers={"done": {"archived_to": "/var/lib/distsync/removed-20260101T120000"}},
        errors=_CHANGE,
    ),
    Operation(
        method="POST",
        path="/lock/force_release",
        id="force_release",
        tag="administration",
        summary="End a grant, whoever holds it",
        description="Without `owner` and `token`, every grant of the lock. Leaves a log line.",
        request=schemas.ForceReleaseRequest,
        requests={"one": _HELD, "all": {"name": "orders/42"}},
        response=schemas.ReleasedResponse,
        answers={"released": {"released": True}},
        errors=(*_ADMIN, *BODY, errors.RequestIdReused, errors.NotHolder),
    ),
    Operation(
        method="POST",
        path="/lock/raise_tokens",
        id="raise_tokens",
        tag="administration",
        summary="Issue only higher fencing tokens from now on",
        description=(
            "For a cluster that was restored from a backup or made anew: it cannot know which"
            " tokens were issued meanwhile or before. Call it before clients do. Never lowers them."
        ),
        request=schemas.RaiseTokensRequest,
        requests={"restored": {"above": 2**40}},
        response=schemas.RaisedResponse,
        answers={"raised": {"above": 2**40}},
        errors=(*_ADMIN, *BODY),
    ),
    Operation(
        method="GET",
        path="/healthz",
        id="health",
        tag="node",
        summary="Whether the process answers",
        response=schemas.HealthResponse,
        answers={"ok": {"status": "ok"}},
        errors=(*ALWAYS, errors.Unauthorized),
    ),
)
