"""How each system is asked for a lock: the requests of a pair, encoded beforehand.

A dialect is made for one client of the load. It may begin with a prologue (etcd: the lease that
all of the client's locks hang on, granted once). `granted` and `released` read an answer:
what the release needs, or None / False for a refusal.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Protocol

from bench.wire import Answer, post, post_template

LEASE_TTL_S = 600
LOCK_TTL_MS = 10_000
WAIT_MS = 10_000

_TOKEN = re.compile(rb'"token"\s*:\s*(\d+)')
_KEY = re.compile(rb'"key"\s*:\s*"([^"]+)"')
_LEASE = re.compile(rb'"ID"\s*:\s*"(\d+)"')
_SUCCEEDED = re.compile(rb'"succeeded"\s*:\s*true')
_DELETED = re.compile(rb'"deleted"\s*:\s*"1"')


class Dialect(Protocol):
    """One client's requests."""

    def prologue(self) -> bytes | None:
        """What to send before the first pair, if anything."""

    def begun(self, answer: Answer) -> bool:
        """Reads the answer to the prologue."""

    def name(self, name: str) -> None:
        """The lock of the pairs to come."""

    def acquire(self) -> bytes:
        """The request that takes the lock, waiting for it when the load shares names."""

    def granted(self, answer: Answer) -> bytes | None:
        """What names the grant in its release, or None if there is no grant."""

    def release(self, ticket: bytes) -> bytes:
        """The request that ends the grant."""

    def released(self, answer: Answer) -> bool:
        """Whether the grant has ended."""


class DistSyncDialect:
    """POST /lock/acquire and /lock/release. `request_ids`: as the client library sends them."""

    def __init__(self, owner: str, *, wait: bool, request_ids: bool = False) -> None:
        self._owner = owner.encode()
        self._wait = b',"wait_ms":%d' % WAIT_MS if wait else b""
        self._request_ids = request_ids
        self._requests = 0
        self._acquire: Callable[[bytes], bytes] = lambda _: b""
        self._release: Callable[[bytes], bytes] = lambda _: b""
        self._acquire_bytes = b""

    def prologue(self) -> bytes | None:
        return None

    def begun(self, answer: Answer) -> bool:
        return True

    def name(self, name: str) -> None:
        who = b'{"name":"%s","owner":"%s"' % (name.encode(), self._owner)
        self._acquire = post_template(
            "/lock/acquire", who + b',"ttl_ms":%d%s@}' % (LOCK_TTL_MS, self._wait), b"@"
        )
        self._acquire_bytes = self._acquire(b"")
        self._release = post_template("/lock/release", who + b',"token":@}', b"@")

    def acquire(self) -> bytes:
        if not self._request_ids:
            return self._acquire_bytes
        return self._acquire(self._request_id())

    def granted(self, answer: Answer) -> bytes | None:
        token = _TOKEN.search(answer.body) if answer.status == 200 else None
        return token[1] if token else None

    def release(self, ticket: bytes) -> bytes:
        if not self._request_ids:
            return self._release(ticket)
        return self._release(ticket + self._request_id())

    def released(self, answer: Answer) -> bool:
        return answer.status == 200

    def _request_id(self) -> bytes:
        self._requests += 1
        return b',"request_id":"%s-%d"' % (self._owner, self._requests)


class _EtcdDialect:
    def __init__(self) -> None:
        self._lease = b""

    def prologue(self) -> bytes | None:
        return post("/v3/lease/grant", b'{"TTL":"%d"}' % LEASE_TTL_S)

    def begun(self, answer: Answer) -> bool:
        lease = _LEASE.search(answer.body) if answer.status == 200 else None
        if lease:
            self._lease = lease[1]
        return lease is not None


class EtcdLockDialect(_EtcdDialect):
    """The v3 lock service: /v3/lock/lock waits for the lock, /v3/lock/unlock gives it up."""

    def __init__(self) -> None:
        super().__init__()
        self._acquire = b""
        self._release = post_template("/v3/lock/unlock", b'{"key":"@"}', b"@")

    def name(self, name: str) -> None:
        key = base64.b64encode(name.encode())
        self._acquire = post("/v3/lock/lock", b'{"name":"%s","lease":"%s"}' % (key, self._lease))

    def acquire(self) -> bytes:
        return self._acquire

    def granted(self, answer: Answer) -> bytes | None:
        key = _KEY.search(answer.body) if answer.status == 200 else None
        return key[1] if key else None

    def release(self, ticket: bytes) -> bytes:
        return self._release(ticket)

    def released(self, answer: Answer) -> bool:
        return answer.status == 200


class EtcdTxnDialect(_EtcdDialect):
    """The cheapest lock etcd can give: put the key if it is absent, delete it. It cannot wait."""

    def __init__(self) -> None:
        super().__init__()
        self._acquire = b""
        self._release = b""

    def name(self, name: str) -> None:
        key = base64.b64encode(name.encode())
        self._acquire = post(
            "/v3/kv/txn",
            b'{"compare":[{"key":"%s","target":"VERSION","result":"EQUAL","version":"0"}],'
            b'"success":[{"requestPut":{"key":"%s","value":"bG9ja2Vk","lease":"%s"}}]}'
            % (key, key, self._lease),
        )
        self._release = post("/v3/kv/deleterange", b'{"key":"%s"}' % key)

    def acquire(self) -> bytes:
        return self._acquire

    def granted(self, answer: Answer) -> bytes | None:
        return b"" if answer.status == 200 and _SUCCEEDED.search(answer.body) else None

    def release(self, ticket: bytes) -> bytes:
        return self._release

    def released(self, answer: Answer) -> bool:
        return answer.status == 200 and _DELETED.search(answer.body) is not None


def make_dialect(kind: str, owner: str, *, wait: bool) -> Dialect:
    """The dialect of that kind for one client. Raises: ValueError for an unknown kind."""
    match kind:
        case "distsync" | "pysyncobj":  # the front before PySyncObj takes the same bodies
            return DistSyncDialect(owner, wait=wait)
        case "distsync-request-ids":
            return DistSyncDialect(owner, wait=wait, request_ids=True)
        case "etcd-lock":
            return EtcdLockDialect()
        case "etcd-txn":
            return EtcdTxnDialect()
        case _:
            raise ValueError(f"no such dialect: {kind}")
