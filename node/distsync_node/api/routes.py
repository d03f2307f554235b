"""Which endpoint answers a request.

Routes are matched on the raw path, so that a name is one percent-encoded segment: the lock
`orders/42` is at `/lock/orders%2F42`. A template has segments in braces. Every route is also there
under `/v1`. A fixed path wins over a template, method by method: `GET /lock/acquire` reads the lock
of that name, `POST /lock/acquire` acquires.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

from distsync_node.api.call import Call
from distsync_node.api.metrics import RouteMetrics
from distsync_node.asgi import ASGIApp
from distsync_node.errors import BadRequest, MethodNotAllowed, NotFound

ALIAS = b"/v1"

Handler: TypeAlias = Callable[[Call], Awaitable[bytes]]

BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Endpoint:
    """What answers one method of one path: a handler that returns JSON, or a whole ASGI app."""

    __slots__ = ("app", "handler", "has_limit", "method", "metrics", "template")

    def __init__(
        self,
        method: str,
        template: str,
        *,
        handler: Handler | None = None,
        app: ASGIApp | None = None,
        has_limit: bool = True,
    ) -> None:
        self.method = method
        self.template = template
        self.handler = handler
        self.app = app
        self.has_limit = has_limit  # of concurrent requests; see `app`
        self.metrics = RouteMetrics(method, template)


class RouteTable:
    """All routes of one port."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._unmatched = RouteMetrics("*", "unmatched")
        self._exact: dict[bytes, dict[str, Endpoint]] = {}
        self._templates: list[tuple[tuple[bytes | None, ...], dict[str, Endpoint]]] = []
        by_path: dict[str, dict[str, Endpoint]] = {}
        for endpoint in self._endpoints:
            by_path.setdefault(endpoint.template, {})[endpoint.method] = endpoint
        for template, methods in by_path.items():
            self._add(template.encode(), methods)

    def _add(self, template: bytes, methods: dict[str, Endpoint]) -> None:
        if b"{" not in template:
            self._exact[template] = methods
            self._exact[ALIAS + template] = methods
            return
        segments = tuple(
            None if segment.startswith(b"{") else segment for segment in template.split(b"/")
        )
        self._templates.append((segments, methods))

    def endpoint(self, method: str, template: str) -> Endpoint:
        """Return an endpoint by its template. Raises KeyError: there is none."""
        for endpoint in self._endpoints:
            if (endpoint.method, endpoint.template) == (method, template):
                return endpoint
        raise KeyError(template)

    def handlers_of(self, method: str) -> dict[bytes, tuple[Handler, Endpoint]]:
        """Return the handlers of fixed paths, by raw path."""
        return {
            path: (endpoint.handler, endpoint)
            for path, methods in self._exact.items()
            if (endpoint := methods.get(method)) is not None and endpoint.handler is not None
        }

    def metrics(self) -> Iterator[RouteMetrics]:
        """Yield the metrics of all routes."""
        for endpoint in self._endpoints:
            yield endpoint.metrics
        yield self._unmatched

    @property
    def unmatched(self) -> RouteMetrics:
        """The metrics of requests that reached no route."""
        return self._unmatched

    def find(self, call: Call, method: str, raw_path: bytes) -> Endpoint:
        """Return the endpoint of a request and set `call.parameters`.

        Raises:
            NotFound, MethodNotAllowed: there is no such path, or not with this method.
        """
        methods = self._exact.get(raw_path)
        if methods is not None:
            endpoint = methods.get(method)
            if endpoint is not None:
                return endpoint
        return self._find_slowly(call, method, raw_path, methods or {})

    def _find_slowly(
        self, call: Call, method: str, raw_path: bytes, fixed: dict[str, Endpoint]
    ) -> Endpoint:
        path = raw_path[len(ALIAS) :] if raw_path.startswith(ALIAS + b"/") else raw_path
        templated, parameters = self._match(path.split(b"/"))
        candidates = {**templated, **fixed}
        if not candidates:
            raise NotFound(_not_found(path))
        endpoint = candidates.get("GET" if method == "HEAD" else method)
        if endpoint is None or (method == "HEAD" and endpoint.app is not None):
            raise MethodNotAllowed(
                f"{method} is not a method of this path", allow=_allowed(candidates)
            )
        call.parameters = parameters
        return endpoint

    def _match(self, segments: list[bytes]) -> tuple[dict[str, Endpoint], tuple[bytes, ...]]:
        for pattern, methods in self._templates:
            if len(pattern) == len(segments):
                pairs = list(zip(pattern, segments, strict=True))
                if all(fixed is None or fixed == segment for fixed, segment in pairs):
                    parameters = tuple(segment for fixed, segment in pairs if fixed is None)
                    if all(parameters):
                        return methods, parameters
        return {}, ()


def _allowed(candidates: dict[str, Endpoint]) -> list[str]:
    methods = set(candidates)
    get = candidates.get("GET")
    if get is not None and get.app is None:
        methods.add("HEAD")
    return sorted(methods)


def _not_found(path: bytes) -> str:
    if path.startswith((b"/lock/", b"/queue/")) and path.count(b"/") > len(b"//"):
        return "no such path; a / within a name is written %2F"
    return "no such path; /openapi.json lists them"


def decoded_segment(call: Call, field: str, index: int = 0) -> str:
    """Return the text of the path segment that matched a parameter of the route, the first is 0.

    Raises:
        BadRequest: it is not percent-encoded UTF-8.
    """
    raw = call.parameters[index]
    if BAD_ESCAPE.search(raw):
        raise BadRequest(f"{field}: a % that is not followed by two hex digits", field=field)
    try:
        return unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{field}: not UTF-8", field=field) from None
