"""Queues that nobody pops are swept all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from distsync_node.errors import DistSyncError, RedisUnavailable
from distsync_node.queues import limits, model, sweeping
from distsync_node.queues.service import QueueService
from distsync_node.queues.sweeping import Sweeper
from distsync_node.queues.types import NewMessage, QueueConfigChange, Swept
from redis_server import RedisServer
from waiting_for import eventually


@pytest.fixture
async def node(server: RedisServer) -> AsyncIterator[QueueService]:
    server.empty()
    node = QueueService(server.url)
    await node.start()
    yield node
    await node.close()


async def test_what_expired_leaves_a_queue_that_nobody_pops(
    node: QueueService, server: RedisServer
) -> None:
    store = node.store
    await store.configure("orders", QueueConfigChange(max_length=1_000), create=True)
    for _ in range(10):
        await store.push("orders", [NewMessage(body=b"x", ttl_ms=1)] * 100)
    with server.client() as client:
        await eventually(lambda: client.hlen(model.key("orders", "bodies").decode()) == 0)
    assert (await store.stats("orders")).expired == 1_000
    await store.push("orders", [NewMessage(body=b"x")] * 100)


async def test_a_last_claim_that_ends_makes_a_dead_letter_that_nobody_waits_for(
    node: QueueService, server: RedisServer
) -> None:
    store = node.store
    await store.configure("orders", QueueConfigChange(max_deliveries=1), create=True)
    await store.push("orders", [NewMessage(body=b"x")])
    assert (await store.pop("orders", visibility_ms=1)).messages
    with server.client() as client:
        await eventually(lambda: client.zcard(model.key("orders", "dead").decode()) == 1)


class Register:
    """Queues of which only it is known how often they were swept; some cannot be."""

    def __init__(self, count: int) -> None:
        self.swept: dict[str, int] = {f"q{number:04}": 0 for number in range(count)}
        self.more: dict[str, int] = {}
        self.errors: dict[str, Exception] = {}

    async def queue_names(self, *, after: str, limit: int) -> tuple[str, ...]:
        await asyncio.sleep(0)
        return tuple(sorted(name for name in self.swept if name > after)[:limit])

    async def sweep(self, queue: str) -> Swept:
        if queue in self.errors:
            raise self.errors[queue]
        self.swept[queue] += 1
        return Swept(moved=1, more=self.swept[queue] < self.more.get(queue, 0), next_ms=None)


class Running:
    """A sweeper at work on a register, with hardly a pause between pages."""

    def __init__(self, register: Register, is_ours: Callable[[str], bool]) -> None:
        self._over = asyncio.Event()
        sweeper = Sweeper(register, is_ours)  # type: ignore[arg-type]
        self._task = asyncio.create_task(sweeper.run(self._over))

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        async with asyncio.timeout(5):
            await self._task


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "node" not in request.fixturenames:
        monkeypatch.setattr(sweeping, "PAGE_SECONDS", 0.001)


async def test_a_node_sweeps_all_its_own_queues_and_no_others() -> None:
    register = Register(3 * limits.MAX_BATCH)
    own = [name for name in register.swept if name.endswith("7")]
    async with Running(register, own.__contains__):
        await eventually(lambda: min(register.swept[name] for name in own) >= 2)
    assert {name for name, times in register.swept.items() if times} == set(own)


async def test_a_queue_of_which_much_is_due_is_swept_again_at_once_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweeping, "PAGE_SECONDS", 60)
    register = Register(3)
    register.more = {"q0000": 7, "q0001": 10_000}
    async with Running(register, lambda _: True):
        await eventually(lambda: register.swept["q0002"])
    assert list(register.swept.values()) == [7, sweeping.MAX_SWEEPS, 1]


async def test_a_queue_that_cannot_be_swept_holds_up_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    register = Register(3)
    register.errors["q0001"] = DistSyncError("redis refuses the call")
    async with Running(register, lambda _: True):
        await eventually(lambda: register.swept["q0002"] >= 3)
    told = [one.getMessage() for one in caplog.records]
    assert told == ["queue q0001 is not swept: redis refuses the call"]


async def test_while_redis_is_away_sweeping_waits_where_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    register = Register(3)
    register.errors["q0001"] = RedisUnavailable("away")
    async with Running(register, lambda _: True):
        await eventually(lambda: caplog.records)
        assert list(register.swept.values()) == [1, 0, 0]
        del register.errors["q0001"]
        await eventually(lambda: register.swept["q0002"] >= 3)
    assert [one.getMessage() for one in caplog.records] == ["queues are not swept: away"]
