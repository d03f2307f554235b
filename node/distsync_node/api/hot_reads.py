"""GET /cache/{key} of what is in this node's own lines, answered in one go.

There is no task, no scope and no await: the whole answer is made when the headers are complete. It
is the answer that `cache.CacheEndpoints.get` gives, headers included; whatever is not plain, or is
not here, goes that way.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Final
from urllib.parse import unquote_to_bytes

from msgspec.json import Encoder

from distsync_node.api.call import mint_request_id
from distsync_node.api.gateway import owner_header
from distsync_node.api.metrics import RouteMetrics
from distsync_node.api.routes import BAD_ESCAPE
from distsync_node.asgi import Header
from distsync_node.cache.calls import CacheCalls, Got
from distsync_node.cache.limits import MAX_KEY_BYTES
from distsync_node.cache.values import RESERVED, Value

PREFIXES: Final = (b"/cache/", b"/v1/cache/")
MAX_HEADERS: Final = 32
MAX_HEADER_BYTES: Final = 512  # of one value

_NOT_PLAIN: Final = frozenset(
    (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"x-request-id")
)
_JSON: Final = b"content-type: application/json\r\n"
_OCTETS: Final = b"content-type: application/octet-stream\r\n"

_encode = Encoder().encode


class HotReads:
    """Answers for the public port. `common` gives the headers of every answer but its id."""

    def __init__(
        self, calls: CacheCalls, metrics: RouteMetrics, common: Callable[[], list[Header]]
    ) -> None:
        self._calls = calls
        self._service = calls.service
        self._metrics = metrics
        self._common = common

    def answer(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> bytes | None:
        """Return the whole answer to a GET without a body; None: it is not for this way."""
        began_s = perf_counter()
        key = _key(url)
        if key is None or len(headers) > MAX_HEADERS:
            return None
        condition = accept = b""
        for name, value in headers:
            if name in _NOT_PLAIN or len(value) > MAX_HEADER_BYTES:
                return None
            if name == b"if-none-match":
                condition = value
            elif name == b"accept":
                accept = value
        got = self._calls.hit(key)
        if got is None or got.value is None:
            return None
        etag = b'"%d.%d"' % got.version
        if condition == etag:
            parts = [b"HTTP/1.1 304 Not Modified\r\n", *self._headers(key, etag), b"\r\n"]
        elif condition or (got.value.is_raw and b"application/json" in accept):
            return None  # a list of versions, or one that is not this one
        else:
            parts = [b"HTTP/1.1 200 OK\r\n", *self._headers(key, etag)]
            parts += self._content(key, got, got.value)
        self._service.hits += 1
        self._metrics.observe(304 if condition else 200, perf_counter() - began_s)
        return b"".join(parts)

    def _headers(self, key: str, etag: bytes) -> list[bytes]:
        parts = [b"x-request-id: ", mint_request_id().encode(), b"\r\n"]
        for name, value in self._common():
            parts += (name, b": ", value, b"\r\n")
        owner = self._service.home_url(key)
        if owner:
            name, value = owner_header(owner)
            parts += (name, b": ", value, b"\r\n")
        parts += (b"distsync-cache: hit\r\netag: ", etag, b"\r\n")
        return parts

    def _content(self, key: str, got: Got, value: Value) -> tuple[bytes, ...]:
        state = self._service.state(key).encode()
        if value.is_raw:
            body = value.payload
            kind = b"%bdistsync-state: %b\r\n" % (_OCTETS, state)
            if got.remaining_ms:
                kind += b"distsync-ttl-ms: %d\r\n" % got.remaining_ms
        else:
            ttl = b',"ttl_ms":%d' % got.remaining_ms if got.remaining_ms else b""
            version = b'"%d.%d"' % got.version
            fields = (_encode(key), value.payload, version, state, ttl)
            body = b'{"key":%b,"value":%b,"version":%b,"state":"%b"%b}' % fields
            kind = _JSON
        return kind, b"content-length: %d\r\n\r\n" % len(body), body


def _key(url: bytes) -> str | None:
    """Return the key of a plain path; None: it has a query, more segments or is not allowed."""
    segment = url[len(b"/cache/") :] if url.startswith(b"/cache/") else url[len(b"/v1/cache/") :]
    if not segment or b"/" in segment or b"?" in segment or b"#" in segment:
        return None
    try:
        if b"%" in segment:
            if BAD_ESCAPE.search(segment):
                return None
            segment = unquote_to_bytes(segment)
        key = segment.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if key.startswith(RESERVED) or len(segment) > MAX_KEY_BYTES else key
