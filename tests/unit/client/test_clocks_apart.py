"""Clocks of clients and of the cluster need not agree: only differences of one clock count."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest

from distsync import AsyncClient
from unit.client.jump_clock import JumpClock
from unit.client.scripted_cluster import ScriptedCluster
from waiting_for import eventually

PATHS = ("/lock/acquire", "/lock/renew", "/lock/release", "/session")
OWN = ("request_id", "owner", "token", "name")


async def use_everything(cluster: ScriptedCluster, client: AsyncClient, clock: JumpClock) -> Any:
    """Take, keep and give back a lock under a clock; return what was asked for.

    Renewals that follow one another count as one: a slow machine has time for more.
    """
    asked_before = {path: len(cluster.asked_for(path)) for path in PATHS}
    async with client.lock("a", ttl=9) as lock:
        assert 5 < lock.expires_in() < 9
        clock.jump(3.1)
        await eventually(lambda: lock.expires_in() > 8)
        lock.check()
    asked = [
        (path, {name: value for name, value in one.body.items() if name not in OWN})
        for path in PATHS
        for one in cluster.asked_for(path)[asked_before[path] :]
    ]
    return [one for one, _ in groupby(asked)]


async def test_a_clients_clock_60_seconds_ahead_changes_nothing(
    cluster: ScriptedCluster,
    make_client: Callable[..., AsyncClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = JumpClock()
    expected = await use_everything(cluster, make_client(clock=exact), exact)
    assert [path for path, _ in expected] == ["/lock/acquire", "/lock/renew", "/lock/release"]

    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 60)
    ahead = JumpClock()
    ahead.offset = 60.0
    assert await use_everything(cluster, make_client(clock=ahead), ahead) == expected


async def test_who_is_ahead_neither_keeps_a_lock_longer_nor_loses_it_earlier(
    cluster: ScriptedCluster, make_client: Callable[..., AsyncClient]
) -> None:
    ahead = JumpClock()
    ahead.offset = 60.0
    holder = await make_client(clock=ahead).lock("a", ttl=60, owner="ahead").acquire()
    other = make_client(clock=JumpClock())
    cluster.table.advance(59)
    assert not await other.lock("a", owner="other").try_acquire()
    cluster.table.advance(2)
    taken = await other.lock("a", owner="other").acquire()
    assert taken.token > holder.token
