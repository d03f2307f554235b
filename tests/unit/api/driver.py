"""Drives an ASGI app by hand where a client library would hide what matters: streams, slow
bodies, clients that go away."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec


class Exchange:
    """One request to an app. Send the body in pieces, read the answer as it comes."""

    def __init__(
        self,
        app: Any,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        query: str = "",
    ) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._progress = asyncio.Condition()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (name.lower().encode(), value.encode()) for name, value in (headers or {}).items()
            ],
            "client": ("192.0.2.1", 4711),
            "server": ("node.test", 80),
            "state": {},
        }
        self.task = asyncio.ensure_future(app(scope, self._inbox.get, self._send))

    async def _send(self, message: dict[str, Any]) -> None:
        await self._is_open.wait()
        async with self._progress:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {
                    name.decode().lower(): value.decode() for name, value in message["headers"]
                }
            else:
                self.body += message.get("body", b"")
                self.is_complete = not message.get("more_body", False)
            self._progress.notify_all()

    def feed(self, body: bytes, *, more: bool = False) -> None:
        self._inbox.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self) -> None:
        self._inbox.put_nowait({"type": "http.disconnect"})

    def block(self) -> None:
        """Read nothing any more: what the app sends from now on waits."""
        self._is_open.clear()

    async def until(self, condition: Any, timeout_s: float = 5) -> None:
        """Wait until `condition(self)` is true of what has been sent."""
        async with asyncio.timeout(timeout_s), self._progress:
            await self._progress.wait_for(lambda: condition(self))

    async def done(self, timeout_s: float = 5) -> None:
        async with asyncio.timeout(timeout_s):
            await self.task

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def post(app: Any, path: str, body: bytes, **headers: str) -> Exchange:
    """Send a whole JSON request and keep the connection open."""
    fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    exchange = Exchange(app, "POST", path, headers=fields)
    exchange.feed(body)
    return exchange
