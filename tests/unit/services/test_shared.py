"""A question that many share."""

from __future__ import annotations

import asyncio

import pytest

from distsync_node.services.shared import Shared


class Oracle:
    """Answers when it is told to, with how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self) -> int:
        self.asked += 1
        number = self.asked
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return number


async def begun(shared: Shared[int], count: int = 1) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(shared.answer()) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_who_asks_while_a_question_is_under_way_shares_the_next() -> None:
    oracle = Oracle()
    shared = Shared(oracle.ask)
    (first,) = await begun(shared)
    later = await begun(shared, 5)
    assert oracle.asked == 1
    oracle.may_answer.set()
    assert await first == 1
    assert [await task for task in later] == [2] * 5
    assert await shared.answer() == 3


async def test_one_that_comes_during_the_second_question_gets_the_third() -> None:
    oracle = Oracle()
    shared = Shared(oracle.ask)
    first, second = *(await begun(shared)), *(await begun(shared))
    oracle.may_answer.set()
    assert await first == 1
    oracle.may_answer.clear()
    for _ in range(5):
        await asyncio.sleep(0)
    assert oracle.asked == 2
    (third,) = await begun(shared)
    oracle.may_answer.set()
    assert (await second, await third) == (2, 3)


async def test_who_gives_up_leaves_the_others_with_theirs() -> None:
    oracle = Oracle()
    shared = Shared(oracle.ask)
    first, *others = [*(await begun(shared)), *(await begun(shared, 2))]
    first.cancel()
    others[0].cancel()
    oracle.may_answer.set()
    assert await others[1] == 2


async def test_an_error_is_for_those_who_shared_it() -> None:
    oracle = Oracle()
    shared = Shared(oracle.ask)
    (first,) = await begun(shared)
    oracle.error = OSError("no")
    oracle.may_answer.set()
    with pytest.raises(OSError, match="no"):
        await first
    oracle.error = None
    assert await shared.answer() == 2
