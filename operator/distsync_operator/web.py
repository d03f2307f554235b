"""Health and metrics of the operator itself."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from aiohttp import web

from distsync_operator.metrics import Metrics


@contextlib.asynccontextmanager
async def serve(metrics: Metrics, port: int, host: str = "0.0.0.0") -> AsyncIterator[None]:
    """Answer /healthz (the process goes round), /readyz (it works or stands by) and /metrics."""

    async def ok(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def render(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.router.add_get("/healthz", ok)
    app.router.add_get("/readyz", ok)
    app.router.add_get("/metrics", render)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()
