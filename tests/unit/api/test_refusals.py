"""Every refusal of the lock machine and every error of the node has its answer."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from distsync_node import errors
from distsync_node.api.gateway import Gateway
from distsync_node.api.locks import done, granted, refusal
from distsync_node.errors import DistSyncError, InvariantViolation
from distsync_node.locks.commands import Done, RefusalCode, Refused, Waiting
from unit.api.local_node import LocalNode

LIMITS = {
    RefusalCode.TOO_MANY_WAITERS: "waiters",
    RefusalCode.TOO_MANY_LOCKS: "locks",
    RefusalCode.TOO_MANY_SESSIONS: "sessions",
}
ACQUIRE = {"name": "x", "owner": "a"}


@pytest.mark.parametrize("code", RefusalCode)
def test_refusals_are_named_alike_in_the_api(code: RefusalCode) -> None:
    error = refusal(Refused(code=code, name="x", cycle=("a", "b")))
    if code in LIMITS:
        assert error.code == "limit_reached"
        assert error.status == 429
        assert error.fields["limit"] == LIMITS[code]
    else:
        assert error.code == code.name.lower()
        assert error.status in (404, 409, 422)


def test_deadlock_shows_the_cycle_closed() -> None:
    error = refusal(Refused(code=RefusalCode.DEADLOCK, name="x", cycle=("a", "b")))
    assert error.fields["cycle"] == ["a", "b"]
    assert "a -> b -> a" in error.detail


def test_an_outcome_of_another_kind_is_a_broken_promise() -> None:
    with pytest.raises(InvariantViolation):
        granted(Done())
    with pytest.raises(InvariantViolation):
        done(Waiting(attempt=1))


@pytest.mark.parametrize(
    ("error", "status", "code", "retriable"),
    [
        (errors.NoLeader("n"), 503, "no_leader", True),
        (errors.Uninitialised("u"), 503, "uninitialised", True),
        (errors.MemberRemoved("m"), 503, "member_removed", False),
        (errors.ShuttingDown("s"), 503, "shutting_down", True),
        (errors.OutcomeUnknown("o"), 504, "outcome_unknown", True),
        (errors.DiskFull("d"), 507, "disk_full", True),
        (errors.LimitReached("l", limit="max_pending"), 429, "limit_reached", True),
    ],
)
async def test_errors_of_the_node_become_problems(
    client: httpx.AsyncClient,
    node: LocalNode,
    error: DistSyncError,
    status: int,
    code: str,
    retriable: bool,
) -> None:
    node.error = error
    answer = await client.post("/lock/acquire", json={**ACQUIRE, "request_id": "r-1"})
    body = answer.json()
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert (body["code"], body["retriable"], body["detail"]) == (code, retriable, error.detail)
    assert body["request_id"] == "r-1"
    assert ("retry-after" in answer.headers) is (status in (429, 503))
    assert ("leader" in body) is (status in (503, 504))


async def test_unknown_outcome_tells_the_minted_id_to_retry_with(
    client: httpx.AsyncClient, node: LocalNode
) -> None:
    node.error = errors.OutcomeUnknown("no outcome in time")
    first = await client.post("/lock/acquire", json=ACQUIRE, headers={"x-request-id": "trace"})
    assert first.status_code == 504
    node.error = None
    again = await client.post(
        "/lock/acquire", json={**ACQUIRE, "request_id": first.json()["request_id"]}
    )
    assert again.status_code == 200
    assert first.json()["request_id"] != "trace"


async def test_a_bug_is_500_and_says_nothing_of_itself(
    client: httpx.AsyncClient, node: LocalNode, caplog: pytest.LogCaptureFixture
) -> None:
    node.error = RuntimeError("secret detail")
    for request in (
        client.post("/lock/acquire", json=ACQUIRE),
        client.get("/lock/x"),
        client.get("/lock/x/watch"),
    ):
        answer = await request
        assert answer.status_code == 500
        assert answer.json()["code"] == "internal"
        assert "secret" not in answer.text
    records = [record for record in caplog.records if record.name == "distsync.api"]
    assert len(records) == 3
    assert all(record.exc_info for record in records)


async def test_broken_invariant_is_reported(node: LocalNode) -> None:
    from distsync_node.api.app import build_public_app

    reported: list[InvariantViolation] = []
    app: Gateway = build_public_app(
        node, node_name="node-1", on_invariant_violation=reported.append
    )
    node.error = InvariantViolation("two leaders in one term")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://node.test") as client:
        answer = await client.post("/lock/acquire", json=ACQUIRE)
    assert answer.status_code == 500
    assert [str(one) for one in reported] == ["two leaders in one term"]


def test_every_error_has_a_distinct_code() -> None:
    kinds: list[Any] = []

    def collect(kind: Any) -> None:
        kinds.append(kind)
        for child in kind.__subclasses__():
            collect(child)

    collect(DistSyncError)
    ours = [kind for kind in kinds if kind.__module__ == "distsync_node.errors"]
    codes = [kind.code for kind in ours]
    assert len(set(codes)) == len(codes)
