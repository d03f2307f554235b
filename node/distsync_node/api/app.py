"""The two ports of a node as ASGI apps: one for everybody, one for nodes and administrators."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response

from distsync_node import __version__
from distsync_node.api.admin import AdminEndpoints
from distsync_node.api.cache import CacheEndpoints
from distsync_node.api.cache_schemas import MAX_PUT_BYTES
from distsync_node.api.call import Bodies, Call, Patience
from distsync_node.api.cluster import ClusterEndpoints
from distsync_node.api.crowd import PROBES
from distsync_node.api.gateway import SCOPE_KEY, Gateway
from distsync_node.api.hot_reads import HotReads
from distsync_node.api.locks import LockEndpoints, encode
from distsync_node.api.metrics import CacheCollector, HttpCollector, Metrics, NodeCollector
from distsync_node.api.openapi import build_document
from distsync_node.api.operations import PEER_OPERATIONS, PUBLIC_OPERATIONS
from distsync_node.api.options import ApiOptions
from distsync_node.api.passing_on import ONCE, REPEATABLE, WAITING, Kind, PassingOn
from distsync_node.api.queue_schemas import MAX_PUSH_BYTES
from distsync_node.api.queues import QueueEndpoints
from distsync_node.api.reads import LockReads
from distsync_node.api.routes import Endpoint, Handler, RouteTable
from distsync_node.asgi import ASGIApp
from distsync_node.cache.calls import CacheCalls
from distsync_node.cache.limits import MAX_BATCH_BYTES
from distsync_node.cache.service import no_cache
from distsync_node.errors import InvariantViolation, StartupError, Unauthorized
from distsync_node.queues.service import QueueService
from distsync_node.services.interface import Node

_DEFAULTS = ApiOptions()
# Answered however many requests wait: probes, and what ends or prolongs what others wait for.
_UNLIMITED = frozenset(
    {
        *PROBES,
        "/lock/release",
        "/lock/renew",
        "/session/keepalive",
        "/session/close",
        "/queue/ack",
        "/queue/nack",
        "/queue/extend",
    }
)

OnInvariantViolation = Callable[[InvariantViolation], None]


def build_public_app(
    node: Node,
    *,
    node_name: str,
    queues: QueueService | None = None,
    cache_calls: CacheCalls | None = None,
    passing_on: PassingOn | None = None,
    options: ApiOptions = _DEFAULTS,
    on_invariant_violation: OnInvariantViolation | None = None,
) -> Gateway:
    """Return the app of the public port. Call its `close` when the node stops: it ends streams.

    Without `queues` or `cache_calls` their endpoints answer 503; without `passing_on` so do those
    of the cache while this node is not in the ring.
    """
    patience = Patience(options)
    large = replace(options, max_body_bytes=max(options.max_body_bytes, MAX_PUSH_BYTES))
    queue = QueueEndpoints(
        node, queues or QueueService(""), options, patience, Bodies(large, patience)
    )
    locks = LockEndpoints(node, options, patience, Bodies(options, patience))
    calls = cache_calls or CacheCalls(no_cache(), options.command_timeout_ms)
    cache_bodies = Bodies(replace(options, max_body_bytes=MAX_PUT_BYTES), patience)
    batch_bodies = Bodies(replace(options, max_body_bytes=MAX_BATCH_BYTES), patience)
    cache = CacheEndpoints(
        node, calls, options, patience, bodies=cache_bodies, batch_bodies=batch_bodies
    )

    def anywhere(handler: Handler, kind: Kind, bodies: Bodies = cache_bodies) -> Handler:
        return passing_on.around(handler, bodies, patience, kind) if passing_on else handler

    reads = LockReads(node, options)
    cluster = ClusterEndpoints(node)
    framework = _Framework(reads)
    handlers: dict[str, Handler] = {
        "POST /lock/acquire": locks.acquire,
        "POST /lock/acquire_many": locks.acquire_many,
        "POST /lock/upgrade": locks.upgrade,
        "POST /lock/downgrade": locks.downgrade,
        "POST /lock/release": locks.release,
        "POST /lock/renew": locks.renew,
        "POST /session": locks.open_session,
        "POST /session/keepalive": locks.keep_alive,
        "POST /session/close": locks.close_session,
        "GET /lock/{name}": reads.lock,
        "GET /locks": reads.locks,
        "POST /queue/push": queue.push,
        "POST /queue/pop": queue.pop,
        "POST /queue/ack": queue.ack,
        "POST /queue/nack": queue.nack,
        "POST /queue/extend": queue.extend,
        "GET /queues": queue.list_names,
        "GET /queue/{name}": queue.stats,
        "GET /queue/{name}/peek": queue.peek,
        "GET /queue/{name}/messages": queue.list_messages,
        "GET /queue/{name}/messages/{id}": queue.get_message,
        "DELETE /queue/{name}/messages/{id}": queue.cancel_message,
        "PUT /queue/{name}/config": queue.configure,
        "GET /queue/{name}/schedules": queue.list_schedules,
        "PUT /queue/{name}/schedules/{id}": queue.put_schedule,
        "DELETE /queue/{name}/schedules/{id}": queue.delete_schedule,
        "POST /queue/{name}/pause": queue.pause,
        "POST /queue/{name}/resume": queue.resume,
        "POST /queue/{name}/purge": queue.purge,
        "POST /queue/{name}/redrive": queue.redrive,
        "GET /cache": cache.stats,
        "GET /cache/{key}": anywhere(cache.get, REPEATABLE),
        "PUT /cache/{key}": anywhere(cache.put, ONCE),
        "DELETE /cache/{key}": anywhere(cache.delete, ONCE),
        "DELETE /cache/{key}/compute": anywhere(cache.give_up, REPEATABLE),
        "POST /cache/batch": anywhere(cache.batch, ONCE, batch_bodies),
        "POST /cache/compute": anywhere(cache.compute, WAITING),
        "POST /cache/invalidate_tag": anywhere(cache.invalidate_tag, ONCE),
        "GET /debug/cache/lines": cache.lines,
        "GET /cluster/status": cluster.status,
        "GET /cluster/ring": cluster.ring,
        "GET /healthz": cluster.health,
        "GET /readyz": cluster.ready,
    }
    gateway = Gateway(
        node=node,
        node_name=node_name,
        routes=RouteTable((*_endpoints(handlers), *framework.endpoints())),
        options=options,
        lifespan=framework,
        closers=(reads.close,),
        on_invariant_violation=on_invariant_violation,
    )
    if not options.access_log:
        route = gateway.endpoint("GET", "/cache/{key}")
        gateway.hot_get = HotReads(calls, route.metrics, gateway.common_headers).answer
    framework.metrics = Metrics(
        HttpCollector(gateway.metrics, lambda: gateway.in_flight),
        NodeCollector(node),
        CacheCollector(calls.service),
    )
    return gateway


def build_peer_app(
    node: Node,
    secret: str,
    peer_handlers: Mapping[str, ASGIApp],
    *,
    node_name: str,
    peer_url: str = "",
    client_url: str = "",
    options: ApiOptions = _DEFAULTS,
    on_invariant_violation: OnInvariantViolation | None = None,
) -> Gateway:
    """Return the app of the peer port; every call to it needs the shared secret.

    `peer_handlers` (path -> ASGI app) are served first and answer all by themselves.

    Raises:
        StartupError: the secret is empty.
    """
    patience = Patience(options)
    bodies = Bodies(options, patience)
    cluster = ClusterEndpoints(node)
    admin = AdminEndpoints(node, options, bodies, peer_url=peer_url, client_url=client_url)
    document = encode(
        build_document(
            PEER_OPERATIONS,
            title="DistSync administration",
            description="The peer port of a node: for other nodes, operators, administrators.",
            has_secret=True,
        )
    )

    async def openapi(_call: Call) -> bytes:
        return document

    handlers: dict[str, Handler] = {
        "GET /cluster/identity": admin.identity,
        "POST /cluster/bootstrap": admin.bootstrap,
        "POST /cluster/members": admin.add_member,
        "DELETE /cluster/members/{id}": admin.remove_member,
        "POST /cluster/members/{id}/promote": admin.promote_member,
        "POST /cluster/members/{id}/demote": admin.demote_member,
        "POST /cluster/transfer": admin.transfer,
        "POST /cluster/drain": admin.drain,
        "POST /cluster/archive": admin.archive,
        "POST /lock/force_release": admin.force_release,
        "POST /lock/raise_tokens": admin.raise_tokens,
        "GET /healthz": cluster.health,
        "GET /openapi.json": openapi,
    }
    return Gateway(
        node=node,
        node_name=node_name,
        routes=RouteTable(_endpoints(handlers, has_limits=False)),
        options=options,
        admit=_Doorkeeper(secret),
        raw_handlers=peer_handlers,
        on_invariant_violation=on_invariant_violation,
    )


def _endpoints(handlers: Mapping[str, Handler], *, has_limits: bool = True) -> list[Endpoint]:
    endpoints = []
    for route, handler in handlers.items():
        method, _, template = route.partition(" ")
        has_limit = has_limits and template not in _UNLIMITED
        endpoints.append(Endpoint(method, template, handler=handler, has_limit=has_limit))
    return endpoints


class _Doorkeeper:
    """Lets only those in who know the shared secret; compares in constant time."""

    def __init__(self, secret: str) -> None:
        if not secret:
            raise StartupError("the shared secret is empty: give --secret-file with one line in it")
        self._secret = secret.encode()

    def __call__(self, call: Call) -> None:
        given = call.authorization or b""
        scheme, _, credentials = given.partition(b" ")
        # Compared even when the scheme is wrong, so that time tells nothing.
        is_known = hmac.compare_digest(credentials.strip(), self._secret)
        if not is_known or scheme.lower() != b"bearer":
            raise Unauthorized("send `Authorization: Bearer` with the shared secret")


class _Framework(FastAPI):
    """What is not hot: streams, metrics, the document and its pages."""

    def __init__(self, reads: LockReads) -> None:
        super().__init__(
            title="DistSync",
            version=__version__,
            docs_url="/docs",
            redoc_url=None,
            redirect_slashes=False,
        )
        self.metrics: Metrics | None = None
        self._reads = reads
        self._document = build_document(
            PUBLIC_OPERATIONS,
            title="DistSync",
            description=(
                "Locks, queues and a coherent cache for the applications of a cluster. Any node"
                " takes any call;"
                " `Distsync-Leader` says where locks are decided, which saves a hop. Durations are"
                " integer milliseconds. Errors are problem+json: look at `code`, and retry only"
                " where `retriable` says so."
            ),
        )
        self.add_api_route("/lock/{name}/watch", self._watch, methods=["GET"])
        self.add_api_route("/metrics", self._metrics, methods=["GET"])
        self.add_exception_handler(Exception, _pass_on)

    def openapi(self) -> dict[str, Any]:
        """Return the document made from the structs of all endpoints."""
        return self._document

    def endpoints(self) -> list[Endpoint]:
        """Return an endpoint for each route of the framework."""
        found = []
        for route in self.routes:
            path: str = getattr(route, "path")  # noqa: B009 - every kind of route has one
            methods: set[str] = getattr(route, "methods", None) or set()
            found += [
                Endpoint(method, path, app=self, has_limit=path not in _UNLIMITED)
                for method in methods - {"HEAD"}
            ]
        return found

    async def _watch(self, request: Request) -> Response:
        call: Call = request.scope[SCOPE_KEY]
        return await self._reads.watch(call)

    async def _metrics(self, request: Request) -> Response:
        if self.metrics is None:
            raise InvariantViolation("the metrics are not connected")
        content, content_type = self.metrics.render(request.headers.get("accept", ""))
        return Response(content, media_type=content_type)


async def _pass_on(_request: Request, error: Exception) -> Response:
    """Leave every error to the gateway, where all answers to errors are made."""
    raise error
