"""What can be read of locks: one, many, and one as it changes.

Reads are linearizable: the node confirms with the leader that its replica has everything that was
acknowledged before the request. A watch begins with such a read; what follows is the local replica,
event by event, which may be a moment behind but never goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.responses import Response

from distsync_node.api.call import Call, field_error
from distsync_node.api.ingress import checked_name
from distsync_node.api.locks import encode, mode_name
from distsync_node.api.options import ApiOptions
from distsync_node.api.routes import decoded_segment
from distsync_node.api.schemas import (
    HolderView,
    LockResponse,
    LocksQuery,
    LocksResponse,
    WaiterView,
)
from distsync_node.asgi import Receive, Scope, Send, disconnected
from distsync_node.errors import BadRequest, DistSyncError, LimitReached
from distsync_node.locks.views import LockView
from distsync_node.services.interface import Node

SHOWN_IN_LISTS = 100
MAX_QUERY_FIELDS = 8

_KEEP_ALIVE = b": keep-alive\n\n"


def lock_response(name: str, view: LockView | None, now_ms: int) -> LockResponse:
    """Return what the API shows of a lock; deadlines become remaining time."""
    if view is None:
        return LockResponse(
            name=name,
            mode=None,
            limit=None,
            token=None,
            holders=[],
            waiters=[],
            waiter_count=0,
            holder_count=0,
        )
    holders = view.holders
    return LockResponse(
        name=name,
        mode=mode_name(holders[0].mode) if holders else None,
        limit=view.limit,
        token=max((holder.token for holder in holders), default=None),
        holders=[
            HolderView(
                owner=holder.owner,
                mode=mode_name(holder.mode),
                token=holder.token,
                expires_in_ms=max(0, holder.deadline_ms - now_ms),
                session=holder.session,
            )
            for holder in holders
        ],
        waiters=[
            WaiterView(
                owner=waiter.owner,
                mode=mode_name(waiter.mode),
                position=waiter.position - 1,
                gives_up_in_ms=max(0, waiter.deadline_ms - now_ms),
                upgrade=waiter.upgrade,
            )
            for waiter in view.waiters
        ],
        waiter_count=view.waiter_count,
        holder_count=view.holder_count,
    )


def _shortened(view: LockView) -> LockView:
    return msgspec.structs.replace(
        view, holders=view.holders[:SHOWN_IN_LISTS], waiters=view.waiters[:SHOWN_IN_LISTS]
    )


def query_pairs(call: Call, most: int = MAX_QUERY_FIELDS) -> list[tuple[str, str]]:
    """Return the parameters of a query, at most so many.

    Raises:
        BadRequest: they are more, or no text.
    """
    try:
        return parse_qsl(
            call.scope["query_string"].decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=most,
        )
    except ValueError:
        raise BadRequest("query: not percent-encoded UTF-8", field="query") from None


Query = TypeVar("Query", bound=msgspec.Struct)


def query_of(call: Call, kind: type[Query]) -> Query:
    """Return the checked parameters of a GET or a DELETE.

    Raises:
        BadRequest: one is unknown, there twice or out of range.
    """
    pairs = query_pairs(call)
    query = dict(pairs)
    if len(query) != len(pairs):
        raise BadRequest("query: a parameter is there twice", field="query")
    try:
        return msgspec.convert(query, kind, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(error) from None


class LockReads:
    """GET /lock/{name}, GET /locks, GET /lock/{name}/watch"""

    def __init__(self, node: Node, options: ApiOptions) -> None:
        self._node = node
        self._options = options
        self._watchers = 0
        self._closing = asyncio.Event()

    async def lock(self, call: Call) -> bytes:
        """GET /lock/{name}"""
        name = checked_name(decoded_segment(call, "name"))
        await self._barrier()
        return encode(self._read(name)[1])

    async def locks(self, call: Call) -> bytes:
        """GET /locks"""
        query = query_of(call, LocksQuery)
        await self._barrier()
        now_ms = self._node.leader_time_ms()
        views = self._node.machine.lock_views(query.prefix, query.after, query.limit)
        last = views[-1].name if len(views) == query.limit else None
        return encode(
            LocksResponse(
                locks=[lock_response(view.name, _shortened(view), now_ms) for view in views],
                next=last,
            )
        )

    async def watch(self, call: Call) -> Response:
        """GET /lock/{name}/watch: an answer that streams until either side ends it."""
        name = checked_name(decoded_segment(call, "name"))
        if self._watchers >= self._options.max_watchers:
            raise LimitReached("too many watches on this node", limit="watchers")
        await self._barrier()
        return WatchResponse(self, name)

    def close(self) -> None:
        """End every watch, now and from now on."""
        self._closing.set()

    async def _barrier(self) -> None:
        await self._node.read_barrier(timeout_ms=self._options.command_timeout_ms)

    def _read(self, name: str) -> tuple[LockView | None, LockResponse]:
        view = self._node.machine.lock_view(name)
        return view, lock_response(name, view, self._node.leader_time_ms())

    async def stream(self, name: str, receive: Receive, send: Send) -> None:
        """Send the events of one watch until the client goes or the node closes."""
        self._watchers += 1
        enders = (
            asyncio.ensure_future(_closed(self._closing)),
            asyncio.ensure_future(disconnected(receive)),
        )
        try:
            await self._send_events(name, send, enders)
        finally:
            self._watchers -= 1
            for ender in enders:
                ender.cancel()

    async def _send_events(
        self, name: str, send: Send, enders: tuple[asyncio.Future[None], ...]
    ) -> None:
        changes = self._node.watch(name)
        change = asyncio.ensure_future(anext(changes, None))
        seen: LockView | None = None
        is_first = True
        try:
            while True:
                await asyncio.wait(
                    (change, *enders),
                    timeout=self._options.watch_keep_alive_ms / 1000,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if any(ender.done() for ender in enders):
                    break
                if not change.done():
                    await self._barrier()  # silence counts only from who would hear of a change
                    await self._send_chunk(send, _KEEP_ALIVE)
                    continue
                change.result()
                change = asyncio.ensure_future(anext(changes, None))
                view, response = self._read(name)
                if is_first or view != seen:
                    is_first, seen = False, view
                    await self._send_chunk(
                        send, b"event: lock\ndata: " + encode(response) + b"\n\n"
                    )
        except (DistSyncError, TimeoutError):
            pass  # The node stopped, was removed or cut off, or the client does not read: the
            # stream ends, and the client may come again, here or elsewhere.
        finally:
            await _stop(change, changes)
        await self._send_end(send)

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        async with asyncio.timeout(self._options.send_timeout_ms / 1000):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def _send_end(self, send: Send) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.send_timeout_ms / 1000):
                await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _stop(change: asyncio.Future[None], changes: AsyncIterator[None]) -> None:
    change.cancel()
    await asyncio.gather(change, return_exceptions=True)
    close = getattr(changes, "aclose", None)
    if close is not None:
        await close()


async def _closed(closing: asyncio.Event) -> None:
    await closing.wait()


class WatchResponse(Response):
    """Server-sent events."""

    media_type = "text/event-stream"

    def __init__(self, reads: LockReads, name: str) -> None:
        super().__init__(headers={"cache-control": "no-cache"})
        del self.headers["content-length"]
        self._reads = reads
        self._name = name

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the headers, then events."""
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        await self._reads.stream(self._name, receive, send)
