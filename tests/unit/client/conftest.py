from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from distsync import AsyncClient
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("error"))


@pytest.fixture
async def cluster() -> AsyncIterator[ScriptedCluster]:
    cluster = ScriptedCluster()
    await cluster.start(3)
    yield cluster
    await cluster.stop()


@pytest.fixture
def clock() -> JumpClock:
    return JumpClock()


@pytest.fixture
async def make_client(
    cluster: ScriptedCluster, clock: JumpClock
) -> AsyncIterator[Callable[..., AsyncClient]]:
    """Makes clients; after the test they leave no task and no connection behind."""
    made: list[AsyncClient] = []
    before = asyncio.all_tasks()

    def make(urls: str | list[str] | None = None, **options: object) -> AsyncClient:
        client = AsyncClient(urls or cluster.urls(), **{"clock": clock, **options})  # type: ignore[arg-type]
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()
    left = {task for task in asyncio.all_tasks() - before if task.get_name().startswith("distsync")}
    assert not left
    gc.collect(1)  # an unclosed session or connector warns here, and warnings are errors


@pytest.fixture
def client(make_client: Callable[..., AsyncClient]) -> AsyncClient:
    return make_client()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_of_other_modules() -> None:
    """What others left to the collector is no fault of these tests, where a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()
