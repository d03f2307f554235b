"""Calls to the API server: not all at once, and some not behind the others."""

from __future__ import annotations

import asyncio

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from distsync_operator.kube import AT_ONCE, Kube


async def test_many_calls_wait_for_each_other_and_not_those_of_another() -> None:
    held, gate = asyncio.Semaphore(0), asyncio.Event()
    most = now = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal most, now
        if request.path.endswith("/quick"):
            return web.json_response({"metadata": {"name": "quick"}})
        now += 1
        most = max(most, now)
        held.release()
        await gate.wait()
        now -= 1
        return web.json_response({"metadata": {"name": "slow"}})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        async with ApiClient(Configuration(host=f"http://{host}:{port}")) as client:
            many, lease = Kube(client), Kube(client)
            calls = [
                asyncio.create_task(many.get("Pod", "apps", "slow")) for _ in range(3 * AT_ONCE)
            ]
            for _ in range(AT_ONCE):
                await held.acquire()
            assert await lease.get("Lease", "apps", "quick") is not None
            gate.set()
            assert None not in await asyncio.gather(*calls)
    finally:
        await runner.cleanup()
    assert most == AT_ONCE
