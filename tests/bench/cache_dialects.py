"""How each cache is asked for a value and given one, the requests encoded beforehand.

Values are 200 bytes of text; a read counts only when it brought one of that length.
"""

from __future__ import annotations

import base64
from typing import Protocol

from bench.wire import Answer, get, post

VALUE_BYTES = 200
VALUE = b"x" * VALUE_BYTES
_VALUE_BASE64 = base64.b64encode(VALUE)


class CacheDialect(Protocol):
    """The requests of one system."""

    def read(self, key: str) -> bytes:
        """The request for a value."""

    def was_read(self, answer: Answer) -> bool:
        """Whether the answer brings the value."""

    def write(self, key: str) -> bytes:
        """The request that sets a value."""

    def was_written(self, answer: Answer) -> bool:
        """Whether the value is set."""


class HttpCacheDialect:
    """GET and PUT /cache/{key} of JSON: DistSync, and the application beside it."""

    def read(self, key: str) -> bytes:
        return get(f"/cache/{key}")

    def was_read(self, answer: Answer) -> bool:
        return answer.status == 200 and VALUE in answer.body

    def write(self, key: str) -> bytes:
        return post(f"/cache/{key}", b'{"value":"%s"}' % VALUE, method="PUT")

    def was_written(self, answer: Answer) -> bool:
        return answer.status == 200


class EtcdCacheDialect:
    """/v3/kv/range, linearizable as it is by default, and /v3/kv/put."""

    def read(self, key: str) -> bytes:
        return post("/v3/kv/range", b'{"key":"%s"}' % base64.b64encode(key.encode()))

    def was_read(self, answer: Answer) -> bool:
        return answer.status == 200 and _VALUE_BASE64 in answer.body

    def write(self, key: str) -> bytes:
        name = base64.b64encode(key.encode())
        return post("/v3/kv/put", b'{"key":"%s","value":"%s"}' % (name, _VALUE_BASE64))

    def was_written(self, answer: Answer) -> bool:
        return answer.status == 200


def make_cache_dialect(kind: str) -> CacheDialect:
    """The dialect of that kind. Raises: ValueError for an unknown kind."""
    match kind:
        case "http":
            return HttpCacheDialect()
        case "etcd":
            return EtcdCacheDialect()
        case _:
            raise ValueError(f"no such dialect: {kind}")
