"""What each system is asked, and how its answers are read."""

from __future__ import annotations

import base64

import msgspec
import pytest

from bench.dialects import BATCH, BODY_BYTES, make_dialect, make_queue_dialect
from bench.wire import Answer
from distsync_node.api.queue_schemas import AckRequest, PopRequest, PushRequest
from distsync_node.api.schemas import AcquireRequest, ReleaseRequest


def body_of(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"Content-Length: %d" % len(body) in head
    return body


@pytest.mark.parametrize("kind", ["distsync", "distsync-request-ids"])
@pytest.mark.parametrize("wait", [False, True])
def test_distsync_is_asked_in_its_own_schema(kind: str, wait: bool) -> None:
    dialect = make_dialect(kind, "me", wait=wait)
    dialect.name("orders/42")
    acquire = msgspec.json.decode(body_of(dialect.acquire()), type=AcquireRequest)
    ticket = dialect.granted(Answer(200, b'{"name":"orders/42","token":17,"expires_in_ms":9}'))
    assert ticket is not None
    release = msgspec.json.decode(body_of(dialect.release(ticket)), type=ReleaseRequest)
    assert (acquire.name, acquire.owner) == ("orders/42", "me")
    assert (release.name, release.owner, release.token) == ("orders/42", "me", 17)
    assert (acquire.wait_ms > 0) is wait
    assert (acquire.request_id is None) is (kind == "distsync")


def test_request_ids_are_never_used_twice() -> None:
    dialect = make_dialect("distsync-request-ids", "me", wait=False)
    dialect.name("a")
    asked = [body_of(dialect.acquire()), body_of(dialect.release(b"1")), body_of(dialect.acquire())]
    ids = [msgspec.json.decode(body)["request_id"] for body in asked]
    assert len(set(ids)) == 3


@pytest.mark.parametrize("kind", ["distsync", "etcd-lock", "etcd-txn"])
@pytest.mark.parametrize(
    "answer",
    [Answer(409, b'{"code":"lock_held","token":3,"key":"x"}'), Answer(200, b'{"header":{}}')],
)
def test_a_refusal_is_no_grant(kind: str, answer: Answer) -> None:
    dialect = make_dialect(kind, "me", wait=False)
    dialect.name("a")
    assert dialect.granted(answer) is None
    assert not dialect.released(Answer(503, b"{}"))


def test_etcd_locks_hang_on_the_lease_of_the_prologue() -> None:
    dialect = make_dialect("etcd-lock", "me", wait=False)
    assert dialect.prologue() is not None
    assert not dialect.begun(Answer(503, b"{}"))
    assert dialect.begun(Answer(200, b'{"header":{"raft_term":"2"},"ID":"76543","TTL":"600"}'))
    dialect.name("orders/42")
    asked = msgspec.json.decode(body_of(dialect.acquire()))
    assert base64.b64decode(asked["name"]) == b"orders/42"
    assert asked["lease"] == "76543"
    ticket = dialect.granted(Answer(200, b'{"header":{"revision":"3"},"key":"YS9i"}'))
    assert msgspec.json.decode(body_of(dialect.release(ticket or b""))) == {"key": "YS9i"}


def test_an_etcd_transaction_that_put_nothing_is_no_grant() -> None:
    dialect = make_dialect("etcd-txn", "me", wait=False)
    dialect.name("a")
    assert dialect.granted(Answer(200, b'{"header":{},"succeeded":true}')) is not None
    assert dialect.granted(Answer(200, b'{"header":{},"responses":[]}')) is None
    assert dialect.released(Answer(200, b'{"header":{},"deleted":"1"}'))
    assert not dialect.released(Answer(200, b'{"header":{}}'))


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match="no such dialect"):
        make_dialect("zookeeper", "me", wait=False)


@pytest.mark.parametrize(
    ("kind", "batch"), [("singles", 1), ("workers", 1), ("polls", 1), ("batches", BATCH)]
)
def test_queues_are_asked_in_their_own_schema(kind: str, batch: int) -> None:
    dialect = make_queue_dialect(kind)
    dialect.name("jobs")
    push = msgspec.json.decode(body_of(dialect.push(1_234)), type=PushRequest)
    pop = msgspec.json.decode(body_of(dialect.pop()), type=PopRequest)
    ack = msgspec.json.decode(body_of(dialect.ack([b"one", b"two"])), type=AckRequest)
    bodies = [push.body] if batch == 1 else [one.body for one in push.messages or ()]
    assert len(bodies) == batch
    assert all(body is not None and len(body) == BODY_BYTES for body in bodies)
    assert all(body is not None and int(body[:20]) == 1_234 for body in bodies)
    assert (pop.max, pop.wait_ms > 0) == (batch, kind == "polls")
    assert ack.receipts == ["one", "two"]
    assert push.queue == pop.queue == ack.queue == "jobs"
    pop_on = msgspec.json.decode(body_of(dialect.pop_on([b"one", b"two"])), type=PopRequest)
    assert pop_on == msgspec.structs.replace(pop, ack=["one", "two"])


def test_receipts_and_stamps_are_read_from_a_pop() -> None:
    dialect = make_queue_dialect("batches")
    one = b'{"id":"i","body":"%020dxxx","receipt":"r%d","deliveries":1}'
    answer = b'{"messages":[%s,%s]}' % (one % (7, 1), one % (8, 2))
    assert dialect.popped(Answer(200, answer)) == ([b"r1", b"r2"], [7, 8])
    assert dialect.popped(Answer(200, b'{"messages":[]}')) == ([], [])
    assert dialect.popped(Answer(503, answer)) == ([], [])


def test_an_ack_counts_only_for_all_of_its_receipts() -> None:
    dialect = make_queue_dialect("singles")
    assert dialect.acked(Answer(200, b'{"count":2,"dead":[]}'), 2)
    assert not dialect.acked(Answer(200, b'{"count":1,"dead":[]}'), 2)
    assert not dialect.acked(Answer(409, b'{"count":2}'), 2)


def test_a_pop_that_acks_counts_only_if_no_claim_had_ended() -> None:
    dialect = make_queue_dialect("workers")
    assert dialect.ended_claims(Answer(200, b'{"messages":[],"stale":[]}'))
    assert not dialect.ended_claims(Answer(200, b'{"messages":[],"stale":["r"]}'))
    assert not dialect.ended_claims(Answer(503, b'{"stale":[]}'))


def test_an_unknown_queue_dialect_is_refused() -> None:
    with pytest.raises(ValueError, match="no such dialect"):
        make_queue_dialect("topics")
