"""TCP proxies between nodes, so that a test can cut single links, one way or both.

One proxy stands in front of each node's peer port. A connection's first bytes are an HTTP request
that names its sender (`distsync-from`), which tells the link. Cutting a link breaks its connections
and swallows new ones, as a network that drops packets does; cutting only the way back lets requests
through and swallows the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import re
import threading
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any

CHUNK_BYTES = 1 << 16
REQUEST_LINE = re.compile(rb"POST (/[a-z_/]{1,80}) HTTP/1\.1\r\n")
REQUEST_LINE_BYTES = 100  # at most
Link = tuple[str, str]


class LinkProxies:
    """Proxies on an event loop of their own thread; `cut` and `mend` may be called anywhere."""

    def __init__(self) -> None:
        self.requests_cut: set[Link] = set()
        self.answers_cut: set[Link] = set()
        self.requests: Counter[tuple[str, str, str]] = Counter()  # sender, target, path
        self._servers: list[asyncio.Server] = []
        self._open: dict[Link, set[asyncio.Transport]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def listen(self, target: str, port: int, target_port: int) -> None:
        """Stand in front of a node's peer port."""
        self._run(self._listen(target, port, target_port)).result()

    def cut(self, sender: str, target: str, *, answers_only: bool = False) -> None:
        """Lose what `sender` asks of `target` (or only what `target` answers)."""
        link = (sender, target)
        (self.answers_cut if answers_only else self.requests_cut).add(link)
        self._loop.call_soon_threadsafe(self._break, link)

    def isolate(self, name: str, others: list[str]) -> None:
        """Cut a node off, both ways."""
        for other in others:
            if other != name:
                self.cut(name, other)
                self.cut(other, name)

    def mend(self) -> None:
        """Let everything through again."""
        links = self.requests_cut | self.answers_cut
        self.requests_cut.clear()
        self.answers_cut.clear()
        for link in links:
            self._loop.call_soon_threadsafe(self._break, link)

    def close(self) -> None:
        """Stop."""
        self._run(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        gc.collect()  # a connection that no task has seen yet closes itself while it has a loop
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> Future[None]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _break(self, link: Link) -> None:
        for transport in self._open.pop(link, set()):
            transport.abort()

    async def _listen(self, target: str, port: int, target_port: int) -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ended = (OSError, asyncio.IncompleteReadError, asyncio.CancelledError)
            try:
                with contextlib.suppress(*ended):
                    await self._relay(target, target_port, reader, writer)
            finally:
                writer.close()

        self._servers.append(await asyncio.start_server(connected, "127.0.0.1", port))

    async def _relay(
        self,
        target: str,
        target_port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        link = (_sender_of(head), target)
        self._open.setdefault(link, set()).add(writer.transport)
        if link in self.requests_cut:
            await _swallow(reader)
            return
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", target_port)
        self._open.setdefault(link, set()).add(onward_writer.transport)
        self._count_requests(link, b"", head)
        onward_writer.write(head)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, onward_writer, link, self.requests_cut))
                group.create_task(self._pump(onward_reader, writer, link, self.answers_cut))
        except* OSError:
            pass
        finally:
            onward_writer.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        link: Link,
        cut: set[Link],
    ) -> None:
        before = b""
        while data := await reader.read(CHUNK_BYTES):
            if cut is self.requests_cut:
                before = self._count_requests(link, before, data)
            if link not in cut:
                writer.write(data)
                await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    def _count_requests(self, link: Link, before: bytes, data: bytes) -> bytes:
        """Look for request lines that end in `data`; return what the next one may begin in."""
        seen = before + data
        for line in REQUEST_LINE.finditer(seen):
            if line.end() > len(before):
                self.requests[(*link, line[1].decode())] += 1
        return seen[-REQUEST_LINE_BYTES:]

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in list(self._open):
            self._break(link)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _swallow(reader: asyncio.StreamReader) -> None:
    while await reader.read(CHUNK_BYTES):
        pass


def _sender_of(head: bytes) -> str:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"distsync-from":
            return value.strip().decode()
    return ""
