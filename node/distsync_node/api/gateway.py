"""The one entrance of a port: limits, request ids, routing, errors, metrics and logs.

Plain ASGI, no framework: the hot paths are answered from here, and what is not hot is handed on to
FastAPI under the same rules. Everything a client sees as an error is made in one place, as
problem+json; an exception that is not one of ours is a bug, logged with its traceback and answered
with 500.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from functools import lru_cache
from time import perf_counter
from urllib.parse import quote

from distsync_node import logs
from distsync_node.api.call import NOT_MODIFIED, Answered, Call, ClientGone, interruption_of
from distsync_node.api.metrics import RouteMetrics
from distsync_node.api.options import ApiOptions
from distsync_node.api.problems import encode_problem, problem_headers, problem_of
from distsync_node.api.routes import Endpoint, Handler, RouteTable
from distsync_node.asgi import ASGIApp, Header, Message, Receive, Scope, Send
from distsync_node.errors import (
    DistSyncError,
    InvariantViolation,
    LimitReached,
    NotFound,
    PathTooLong,
    PayloadTooLarge,
)
from distsync_node.services.interface import Node

CLIENT_GONE = 499
SERVER_ERROR = 500
DRAIN_BYTES = 4 << 20
DRAIN_S = 2.0
SCOPE_KEY = "distsync.call"

_HEADER_SAFE = "".join(map(chr, range(0x20, 0x7F)))

_logger = logging.getLogger("distsync.api")
_access_logger = logging.getLogger("distsync.access")

HotGet = Callable[[bytes, list[tuple[bytes, bytes]]], bytes | None]
"""Gives the whole answer to the GET of a URL with these headers; None: it goes the long way."""

Admit = Callable[[Call], None]


def header_value(text: str) -> bytes:
    """Return text as a header value; what does not belong into one is percent-encoded."""
    return quote(text, safe=_HEADER_SAFE).encode("ascii")


@lru_cache(maxsize=64)
def owner_header(url: str) -> Header:
    """Return the header that says where the owner of what was asked for is."""
    return b"distsync-owner", header_value(url)


class Gateway:
    """An ASGI app in front of the endpoints of one port."""

    def __init__(
        self,
        *,
        node: Node,
        node_name: str,
        routes: RouteTable,
        options: ApiOptions,
        lifespan: ASGIApp | None = None,
        closers: tuple[Callable[[], None], ...] = (),
        admit: Admit | None = None,
        raw_handlers: Mapping[str, ASGIApp] | None = None,
        on_invariant_violation: Callable[[InvariantViolation], None] | None = None,
    ) -> None:
        self.in_flight = 0
        self._node = node
        self._routes = routes
        self.options = options
        self._lifespan = lifespan
        self._closers = closers
        self._admit = admit
        self._raw_endpoints = {
            path.encode(): Endpoint("*", path, app=app)
            for path, app in (raw_handlers or {}).items()
        }
        self._on_invariant_violation = on_invariant_violation
        self._node_header: Header = (b"distsync-node", header_value(node_name))
        self._leader_url: str | None = None
        self._leader_header: Header = (b"distsync-leader", b"")
        self.hot_get: HotGet | None = None
        self._log_budget = _Budget(options.max_problem_logs_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._other_protocol(scope, receive, send)
            return
        call = Call(scope, receive)
        problem = await self._observed(call, self._relay(call, send))
        if problem is not None:
            await self._send_problem(problem, call, send)

    async def _relay(self, call: Call, send: Send) -> int:
        self._begin(call)
        scope = call.scope
        raw_path = scope.get("raw_path") or scope["path"].encode()
        if raw_path in self._raw_endpoints:
            call.metrics = self._raw_endpoints[raw_path].metrics
            return await self._hand_over(self._raw_endpoints[raw_path], call, send)
        endpoint = self._routes.find(call, scope["method"], raw_path)
        call.metrics = endpoint.metrics
        self._check_limits(call, raw_path, endpoint)
        if endpoint.handler is None:
            return await self._hand_on(endpoint, call, send)
        body = await endpoint.handler(call)
        if call.undelivered is not None and await call.has_gone():
            call.undelivered()
            raise ClientGone
        await _send(send, call, call.status, [*self._headers(call), *call.headers], body)
        return call.status

    async def direct(self, call: Call, handler: Handler, endpoint: Endpoint) -> Answered | None:
        """Answer a request whose body is here already (`call.body`); None: the client has gone."""
        call.metrics = endpoint.metrics
        problem = await self._observed(call, self._handle(call, handler, endpoint))
        if problem is None:
            return call.answer
        status, headers, body = self.answer_of(problem, call)
        return status, [*headers, *self._headers(call)], body

    async def _handle(self, call: Call, handler: Handler, endpoint: Endpoint) -> int:
        self._begin(call)
        self._check_limits(call, b"", endpoint)
        body = await handler(call)
        call.answer = (call.status, [*self._headers(call), *call.headers], body)
        return call.status

    async def answer(self, call: Call) -> Answered | None:
        """Answer a request that another node has passed on; otherwise as `direct`.

        Raises:
            NotFound, MethodNotAllowed: there is no such endpoint.
        """
        scope = call.scope
        endpoint = self._routes.find(call, scope["method"], scope["raw_path"])
        if endpoint.handler is None:
            raise NotFound("that is not passed on")
        return await self.direct(call, endpoint.handler, endpoint)

    def direct_endpoints(self) -> dict[bytes, tuple[Handler, Endpoint]]:
        """Return what may be answered by `direct`: POST of a body, by raw path."""
        return self._routes.handlers_of("POST")

    def endpoint(self, method: str, template: str) -> Endpoint:
        """Return an endpoint by its template."""
        return self._routes.endpoint(method, template)

    def _begin(self, call: Call) -> None:
        call.read_headers(self.options)
        logs.request_id.set(call.id)
        if self._admit is not None:
            self._admit(call)

    async def _observed(self, call: Call, work: Awaitable[int]) -> DistSyncError | None:
        """Run one request to its status under metrics and access log; return its problem."""
        started_s = perf_counter()
        if call.metrics is None:
            call.metrics = self._routes.unmatched
        status = CLIENT_GONE
        problem: DistSyncError | None = None
        self.in_flight += 1
        try:
            status = await work
        except (Exception, asyncio.CancelledError) as error:
            problem = self._error_of(error, call)
            if problem is not None:
                status = problem.status
        finally:
            self.in_flight -= 1
            seconds = perf_counter() - started_s
            call.metrics.observe(status, seconds)
            if self.options.access_log:
                _log_access(call, status, seconds)
        return problem

    def close(self) -> None:
        """End what would otherwise last: streams. Requests are answered as before."""
        for close in self._closers:
            close()

    def metrics(self) -> Iterator[RouteMetrics]:
        """Yield the metrics of all routes of this port."""
        yield from self._routes.metrics()
        for endpoint in self._raw_endpoints.values():
            yield endpoint.metrics

    # --- Ways in --------------------------------------------------------------------------

    def _check_limits(self, call: Call, raw_path: bytes, endpoint: Endpoint) -> None:
        limit = self.options.max_path_bytes
        if len(raw_path) + len(call.scope["query_string"]) > limit:
            raise PathTooLong(f"the path and query are longer than {limit} bytes")
        if self.in_flight > self.options.max_concurrent_requests and endpoint.has_limit:
            raise LimitReached("too many requests at once on this node", limit="requests")

    async def _other_protocol(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" and self._lifespan is not None:
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000, "reason": "no such path"})

    async def _hand_on(self, endpoint: Endpoint, call: Call, send: Send) -> int:
        if endpoint.app is None:
            raise InvariantViolation(f"{endpoint.template} has neither handler nor app")
        relay = _Relay(send, self._headers(call))
        # The framework matches on decoded paths; give it the path as it was sent.
        raw_path: bytes = call.scope.get("raw_path") or call.scope["path"].encode()
        path = raw_path.decode("ascii", "replace").removeprefix("/v1")
        inner: Scope = {**call.scope, "path": path, SCOPE_KEY: call}
        await self._run(endpoint.app, inner, call, relay)
        return relay.status

    async def _hand_over(self, endpoint: Endpoint, call: Call, send: Send) -> int:
        """Let an app answer all by itself: node-to-node traffic needs none of our headers."""
        if endpoint.app is None:
            raise InvariantViolation(f"{endpoint.template} has no app")
        relay = _Relay(send, [])
        await self._run(endpoint.app, call.scope, call, relay)
        return relay.status

    async def _run(self, app: ASGIApp, scope: Scope, call: Call, relay: _Relay) -> None:
        try:
            await app(scope, call.receive, relay)
        except Exception as error:
            if relay.status == CLIENT_GONE:
                raise  # nothing was sent yet: a problem can tell it
            self._log_unforeseen(error, call)

    # --- Ways out -------------------------------------------------------------------------

    def _headers(self, call: Call) -> list[Header]:
        headers = [*self.common_headers(), (b"x-request-id", call.id.encode())]
        if call.owner_url is not None:
            headers.append(owner_header(call.owner_url))
        return headers

    def common_headers(self) -> list[Header]:
        """Return the headers of every answer, whatever was asked for."""
        headers = [self._node_header]
        leader_url = self._node.leader_client_url()
        if leader_url:
            if leader_url != self._leader_url:
                self._leader_url = leader_url
                self._leader_header = (b"distsync-leader", header_value(leader_url))
            headers.append(self._leader_header)
        return headers

    def _error_of(self, error: BaseException, call: Call) -> DistSyncError | None:
        """Say what to tell the client; None: nobody is there. Raises what is not for it."""
        match error:
            case DistSyncError():
                return error
            case ClientGone():
                return None
            case asyncio.CancelledError():
                meaning = interruption_of(call)
                if meaning is None:
                    raise error
                return None if isinstance(meaning, ClientGone) else meaning
            case InvariantViolation() if self._on_invariant_violation is not None:
                self._on_invariant_violation(error)
        self._log_unforeseen(error, call)
        return DistSyncError("internal error; the log of the node tells more")

    def _log_unforeseen(self, error: BaseException, call: Call) -> None:
        _logger.error(
            "a request failed in an unforeseen way",
            exc_info=error,
            extra={"fields": {"method": call.scope["method"], "path": call.scope["path"]}},
        )

    def answer_of(self, error: DistSyncError, call: Call) -> tuple[int, list[Header], bytes]:
        """Return status, own headers and body of a problem; logs it when it is the server's."""
        problem = problem_of(
            error,
            request_id=call.request_id or call.id,
            leader=self._node.leader_client_url(),
        )
        if error.status > SERVER_ERROR and self._log_budget.take():
            _log_problem(error, call, suppressed=self._log_budget.taken_back())
        return error.status, problem_headers(error), encode_problem(problem)

    async def _send_problem(self, error: DistSyncError, call: Call, send: Send) -> None:
        status, headers, body = self.answer_of(error, call)
        headers += self._headers(call)
        if not isinstance(error, PayloadTooLarge):
            await _send(send, call, status, headers, body)
            return
        # Closing with unread bytes would reset the connection before the client has read the
        # answer, so a bounded rest of the body is read away first.
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _drain(call)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, call: Call, status: int, headers: list[Header], body: bytes) -> None:
    if status != NOT_MODIFIED:
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if call.scope["method"] == "HEAD":
        body = b""
    await send({"type": "http.response.body", "body": body})


async def _drain(call: Call) -> None:
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while drained < DRAIN_BYTES:
                message = await call.receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


class _Relay:
    """Passes an answer on, adds the headers of every answer and remembers the status."""

    __slots__ = ("_headers", "_send", "status")

    def __init__(self, send: Send, headers: list[Header]) -> None:
        self._send = send
        self._headers = headers
        self.status = CLIENT_GONE

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._headers:
                message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        await self._send(message)


class _Budget:
    """So many log lines a second; in an outage every request fails, and all the same way."""

    def __init__(self, lines_per_s: int) -> None:
        self._lines_per_s = lines_per_s
        self._second = 0
        self._lines = 0
        self._suppressed = 0

    def take(self) -> bool:
        """Say whether one more line may be written now."""
        second = int(perf_counter())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > self._lines_per_s:
            self._suppressed += 1
            return False
        return True

    def taken_back(self) -> int:
        """Return how many lines were not written since this was last asked."""
        suppressed, self._suppressed = self._suppressed, 0
        return suppressed


def _log_problem(error: DistSyncError, call: Call, *, suppressed: int) -> None:
    fields = {
        "code": error.code,
        "status": error.status,
        "method": call.scope["method"],
        "path": call.scope["path"],
        "client": call.client,
    }
    if call.request_id is not None:
        fields["command_request_id"] = call.request_id
    if suppressed:
        fields["suppressed_before"] = suppressed
    _logger.warning(error.detail, extra={"fields": fields})


def _log_access(call: Call, status: int, seconds: float) -> None:
    fields = {
        "method": call.scope["method"],
        "path": call.scope["path"],
        "status": status,
        "duration_ms": round(seconds * 1000, 3),
        "peer": (call.scope.get("client") or [""])[0],
        "client": call.client,
    }
    _access_logger.info("request", extra={"fields": fields})
