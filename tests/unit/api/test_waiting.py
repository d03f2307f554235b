"""A client that goes away gives up its wait, and only its wait."""

from __future__ import annotations

import asyncio

import pytest

from distsync_node.api.gateway import Gateway
from unit.api.driver import Exchange, post
from unit.api.local_node import LocalNode
from waiting_for import eventually

FIRST = b'{"name":"x","owner":"a"}'
SECOND = b'{"name":"x","owner":"b","wait_ms":60000}'


async def waiting(app: Gateway, node: LocalNode, body: bytes = SECOND) -> Exchange:
    exchange = post(app, "/lock/acquire", body)
    before = node.waiting_count()
    await eventually(lambda: node.waiting_count() > before)
    return exchange


async def test_waiter_is_granted_when_the_holder_releases(app: Gateway, node: LocalNode) -> None:
    first = post(app, "/lock/acquire", FIRST)
    await first.done()
    second = await waiting(app, node)
    release = post(app, "/lock/release", b'{"name":"x","owner":"a","token":1}')
    await release.done()
    await second.done()
    assert second.status == 200
    assert second.json()["token"] == 2
    assert node.cancelled == []


async def test_disconnect_cancels_the_wait(app: Gateway, node: LocalNode) -> None:
    await post(app, "/lock/acquire", FIRST).done()
    second = await waiting(app, node)
    second.disconnect()
    await second.done()
    assert second.status is None
    assert [command.owner for command in node.cancelled] == ["b"]  # type: ignore[union-attr]
    view = node.machine.lock_view("x")
    assert view is not None
    assert view.waiter_count == 0


async def test_disconnect_before_the_watch_begins_is_seen_too(
    app: Gateway, node: LocalNode
) -> None:
    await post(app, "/lock/acquire", FIRST).done()
    second = post(app, "/lock/acquire", SECOND)
    second.disconnect()
    await second.done()
    assert [command.owner for command in node.cancelled] == ["b"]  # type: ignore[union-attr]


async def test_disconnect_of_an_upgrade_cancels_its_wait(app: Gateway, node: LocalNode) -> None:
    for owner in ("a", "b"):
        body = f'{{"name":"x","owner":"{owner}","mode":"shared"}}'.encode()
        await post(app, "/lock/acquire", body).done()
    upgrade = post(app, "/lock/upgrade", b'{"name":"x","owner":"a","token":1,"wait_ms":60000}')
    await eventually(lambda: node.waiting_count() == 1)
    upgrade.disconnect()
    await upgrade.done()
    assert len(node.cancelled) == 1
    view = node.machine.lock_view("x")
    assert view is not None
    assert [holder.owner for holder in view.holders] == ["a", "b"]


async def test_disconnect_after_the_grant_ends_nothing(app: Gateway, node: LocalNode) -> None:
    exchange = post(app, "/lock/acquire", FIRST)
    await exchange.done()
    exchange.disconnect()
    view = node.machine.lock_view("x")
    assert view is not None
    assert view.holder_count == 1
    assert node.cancelled == []


async def test_one_waiter_leaving_leaves_the_others(app: Gateway, node: LocalNode) -> None:
    await post(app, "/lock/acquire", FIRST).done()
    second = await waiting(app, node)
    third = await waiting(app, node, b'{"name":"x","owner":"c","wait_ms":60000}')
    second.disconnect()
    await second.done()
    await post(app, "/lock/release", b'{"name":"x","owner":"a","token":1}').done()
    await third.done()
    assert third.json()["owner"] == "c"


async def test_a_task_cancelled_by_somebody_else_stays_cancelled(
    app: Gateway, node: LocalNode
) -> None:
    await post(app, "/lock/acquire", FIRST).done()
    second = await waiting(app, node)
    second.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second.task
    assert second.status is None
    assert app.in_flight == 0


async def test_nothing_is_left_behind_by_waits(app: Gateway, node: LocalNode) -> None:
    await post(app, "/lock/acquire", FIRST).done()
    exchanges = [
        post(app, "/lock/acquire", f'{{"name":"x","owner":"w{n}","wait_ms":60000}}'.encode())
        for n in range(20)
    ]
    await eventually(lambda: node.waiting_count() == 20)
    assert app.in_flight == 20
    for exchange in exchanges:
        exchange.disconnect()
    for exchange in exchanges:
        await exchange.done()
    assert app.in_flight == 0
    await eventually(lambda: len(asyncio.all_tasks()) == 1)
