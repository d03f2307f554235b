"""How each system is asked for a lock: the requests of a pair, encoded beforehand.

And how DistSync is asked to queue: push, pop and ack.

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
BODY_BYTES = 200
BATCH = 100
POLL_MS = 5_000

_TOKEN = re.compile(rb'"token"\s*:\s*(\d+)')
_KEY = re.compile(rb'"key"\s*:\s*"([^"]+)"')
_LEASE = re.compile(rb'"ID"\s*:\s*"(\d+)"')
_SUCCEEDED = re.compile(rb'"succeeded"\s*:\s*true')
_DELETED = re.compile(rb'"deleted"\s*:\s*"1"')
_STAMP = re.compile(rb'"body"\s*:\s*"(\d{20})')
_RECEIPT = re.compile(rb'"receipt"\s*:\s*"([^"]+)"')
_COUNT = re.compile(rb'"count"\s*:\s*(\d+)')
_NO_STAMP = b"@" * 20


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


class QueueDialect:
    """POST /queue/push, /queue/pop and /queue/ack of bodies that begin with a stamp.

    `batch` messages in each request; with `wait_ms`, pops are long polls. `acks_with_pop`: a pop
    acks what the one before it brought, as a worker does that goes on.
    """

    def __init__(self, *, batch: int = 1, wait_ms: int = 0, acks_with_pop: bool = False) -> None:
        self.acks_with_pop = acks_with_pop
        self._batch = batch
        self._wait = b',"wait_ms":%d' % wait_ms if wait_ms else b""
        self._push = b""
        self._pop = b""
        self._ack: Callable[[bytes], bytes] = lambda _: b""
        self._pop_on: Callable[[bytes], bytes] = lambda _: b""

    def prologue(self) -> bytes | None:
        return None

    def name(self, name: str) -> None:
        """The queue of the messages to come."""
        queue = b'{"queue":"%s"' % name.encode()
        body = b'"body":"%s"' % stamped_body(_NO_STAMP)
        if self._batch > 1:
            body = b'"messages":[%s]' % b",".join([b"{%s}" % body] * self._batch)
        self._push = post("/queue/push", b"%s,%s}" % (queue, body))
        self._pop = post("/queue/pop", b'%s,"max":%d%s}' % (queue, self._batch, self._wait))
        self._ack = post_template("/queue/ack", queue + b',"receipts":["@"]}', b"@")
        ack = b',"ack":["@"]'
        pop_on = b'%s%s,"max":%d%s}' % (queue, ack, self._batch, self._wait)
        self._pop_on = post_template("/queue/pop", pop_on, b"@")

    def push(self, stamp_ns: int) -> bytes:
        """Messages that were sent at that time."""
        return self._push.replace(_NO_STAMP, b"%020d" % stamp_ns)

    def pushed(self, answer: Answer) -> bool:
        """Whether the messages are in the queue."""
        return answer.status == 200

    def pop(self) -> bytes:
        """The request for as many messages as were pushed."""
        return self._pop

    def pop_on(self, receipts: list[bytes]) -> bytes:
        """The same, which ends these claims first."""
        return self._pop_on(b'","'.join(receipts))

    def ended_claims(self, answer: Answer) -> bool:
        """Whether a pop has ended all the claims it was to end."""
        return answer.status == 200 and b'"stale":[]' in answer.body

    def popped(self, answer: Answer) -> tuple[list[bytes], list[int]]:
        """Receipts and stamps; none for a refusal or an empty answer."""
        if answer.status != 200:
            return [], []
        stamps = [int(stamp) for stamp in _STAMP.findall(answer.body)]
        return _RECEIPT.findall(answer.body), stamps

    def ack(self, receipts: list[bytes]) -> bytes:
        """The request that ends the claims."""
        return self._ack(b'","'.join(receipts))

    def acked(self, answer: Answer, count: int) -> bool:
        """Whether all of them were served."""
        told = _COUNT.search(answer.body) if answer.status == 200 else None
        return told is not None and int(told[1]) == count


def stamped_body(stamp: bytes) -> bytes:
    """A body of 200 bytes that begins with 20 of a stamp."""
    return stamp.ljust(BODY_BYTES, b"x")


def make_queue_dialect(kind: str) -> QueueDialect:
    """The dialect of that kind for one client. Raises: ValueError for an unknown kind."""
    match kind:
        case "singles":
            return QueueDialect()
        case "workers":
            return QueueDialect(acks_with_pop=True)
        case "polls":
            return QueueDialect(wait_ms=POLL_MS)
        case "batches":
            return QueueDialect(batch=BATCH)
        case _:
            raise ValueError(f"no such dialect: {kind}")


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
