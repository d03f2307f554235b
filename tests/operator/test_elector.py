"""One operator works at a time, and one that cannot renew stops before another begins."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from distsync_operator.elector import Elector, LeaseLost, LeaseTimes
from distsync_operator.kube import Kube
from kube.api_double import ApiDouble

TIMES = LeaseTimes(duration=1.0, deadline=0.6, retry=0.05)


@pytest.fixture
async def api() -> AsyncIterator[ApiDouble]:
    async with ApiDouble() as double:
        yield double


@pytest.fixture
async def kube(api: ApiDouble) -> AsyncIterator[Kube]:
    async with ApiClient(Configuration(host=api.url)) as client:
        yield Kube(client)


def elector(kube: Kube, identity: str, times: LeaseTimes = TIMES) -> Elector:
    return Elector(kube, "operators", "lease", identity, times)


def holder(api: ApiDouble) -> str:
    lease = api.get("Lease", "lease", "operators")
    assert lease is not None
    return str(lease["spec"]["holderIdentity"])


async def test_the_second_waits_until_the_first_lets_go(api: ApiDouble, kube: Kube) -> None:
    patient = LeaseTimes(duration=60.0, deadline=40.0, retry=0.05)
    first, second = elector(kube, "a", patient), elector(kube, "b", patient)
    await first.acquire()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.acquire())
    before = api.writes["PUT", "Lease"]
    while api.writes["PUT", "Lease"] < before + 20:
        assert not waiting.done()
        await asyncio.sleep(0.02)
    keeping.cancel()
    await first.release()
    await waiting
    assert holder(api) == "b"


async def test_a_lease_that_nobody_renews_is_taken_over(api: ApiDouble, kube: Kube) -> None:
    await elector(kube, "dead").acquire()
    await elector(kube, "b").acquire()
    assert holder(api) == "b"
    lease = api.get("Lease", "lease", "operators")
    assert lease is not None
    assert lease["spec"]["leaseTransitions"] == 1


async def test_who_loses_the_lease_to_another_stops(api: ApiDouble, kube: Kube) -> None:
    first = elector(kube, "a")
    await first.acquire()
    lease = api.get("Lease", "lease", "operators")
    assert lease is not None
    api.update("Lease", {**lease, "spec": {**lease["spec"], "holderIdentity": "b"}})
    with pytest.raises(LeaseLost):
        await first.keep()


async def test_who_cannot_renew_in_time_stops_before_the_lease_ends(kube: Kube) -> None:
    async with ApiDouble() as gone:
        client = ApiClient(Configuration(host=gone.url))
        lonely = elector(Kube(client), "a")
        await lonely.acquire()
    async with asyncio.timeout(TIMES.duration + 5):
        with pytest.raises(LeaseLost):
            await lonely.keep()
    await client.close()
