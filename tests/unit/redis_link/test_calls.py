"""What a call to Redis ends with when none of its attempts was answered well."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest

from distsync_node.errors import (
    BadRequest,
    DistSyncError,
    LimitReached,
    OutcomeUnknown,
    RedisFull,
    RedisUnavailable,
    doubtful,
)
from distsync_node.redis_link.calls import Calls
from distsync_node.redis_link.link import LinkBusy, LinkLost, TooFewReplicas

LOST = LinkLost("cut", was_sent=True)
FULL = hiredis.ReplyError("OOM command not allowed when used memory > 'maxmemory'.")
REFUSED = hiredis.ReplyError("NOPERM this user has no permissions")


class Script:
    """A topology and its link, on which each attempt meets what was written down for it."""

    def __init__(self, attempts: Sequence[Any]) -> None:
        self._attempts = list(attempts)

    async def link(self, _key: bytes, _deadline: float, *, waits: bool) -> Any:
        if isinstance(self._attempts[0], RedisUnavailable):
            raise self._attempts.pop(0)
        return self

    def call(self, _command: bytes) -> asyncio.Future[Any]:
        outcome = self._attempts.pop(0)
        if isinstance(outcome, LinkBusy):
            raise outcome
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if isinstance(outcome, LinkLost | TooFewReplicas):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        return future


async def ended(*attempts: Any, writes: bool = True) -> type[DistSyncError]:
    calls = Calls(Script(attempts))  # type: ignore[arg-type]
    with pytest.raises(DistSyncError) as ended:
        await calls.run(b"key", b"command", writes=writes)
    return type(ended.value)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (LinkBusy(), LimitReached),
        (RedisUnavailable("away"), RedisUnavailable),
        (FULL, RedisFull),
        (REFUSED, RedisUnavailable),
    ],
)
async def test_that_nothing_was_done_is_told_only_if_no_attempt_before_may_have_done_it(
    last: Any, told: type[DistSyncError]
) -> None:
    assert await ended(last) is told
    assert await ended(LinkLost("not sent", was_sent=False), last) is told
    assert await ended(LOST, last, writes=False) is told
    assert await ended(LOST, last) is OutcomeUnknown
    assert await ended(TooFewReplicas("0"), last) is OutcomeUnknown


def test_what_is_wrong_with_a_request_is_wrong_in_doubt_too() -> None:
    wrong = BadRequest("body: is too long", field="body")
    assert doubtful(wrong) is wrong
