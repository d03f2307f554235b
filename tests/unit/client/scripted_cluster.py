"""Nodes on loopback that answer as the real ones do, until a test says otherwise.

The lock table is the real state machine behind the real API; only consensus is left out, so that
every command is committed at once. In front of it each node can be told to drop connections before
or after a request was done, to answer something else, to hold an answer back, to fall silent or to
die.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import msgspec
from aiohttp import web

from distsync.portal import Portal
from distsync_node.api.app import build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.options import ApiOptions
from distsync_node.locks.commands import Outcome
from distsync_node.queues.service import QueueService
from distsync_node.raft.types import Member, MemberId
from unit.api.local_node import LocalNode

QUICK = ApiOptions(disconnect_check_ms=2, watch_keep_alive_ms=1_000, send_timeout_ms=1_000)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as a node received it."""

    node: str
    path: str
    body: dict[str, Any]
    client: str


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests whose path begins with `path`."""

    path: str
    times: int
    drop: Literal["before", "after"] | None = None
    answer: web.Response | Callable[[], web.Response] | None = None
    hold: asyncio.Event | None = None  # the request is not done until it is set
    hold_answer: asyncio.Event | None = None  # it is done, and the answer held back


class Table(LocalNode):
    """The state all nodes share, with a time that a test can move."""

    def __init__(self) -> None:
        super().__init__()
        self._offset_ms = 0

    def leader_time_ms(self) -> int:
        return super().leader_time_ms() + self._offset_ms

    async def _wait(self, command: Any, attempt: int) -> Outcome:
        try:
            return await super()._wait(command, attempt)
        except KeyError:  # its outcome came together with the end of its connection
            raise asyncio.CancelledError from None

    def advance(self, seconds: float) -> None:
        """Let time pass for the cluster alone: leases that nobody renewed end."""
        self._offset_ms += int(seconds * 1000)
        self._expire()

    def _schedule_expiry(self) -> None:
        # Leases end when a test lets time pass, so that a slow machine ends none.
        return

    def stop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()


class _View:
    """The shared table as one node shows it."""

    def __init__(self, table: Table, cluster: ScriptedCluster, name: str) -> None:
        self._table = table
        self._cluster = cluster
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._table, attribute)

    def leader_client_url(self) -> str | None:
        return self._cluster.announced_leader_url()

    def status(self) -> Any:
        cluster = self._cluster
        leader = cluster.leader
        is_leader = leader == self._name
        self._table.members = cluster.members()
        self._table.leader = next((m for m in cluster.members() if m.name == leader), None)
        self._table.changes = {
            "node": self._name,
            "member_id": MemberId(f"id-{self._name}"),
            "role": "leader" if is_leader else "follower",
            "cluster_id": cluster.cluster_id,
            **cluster.status_changes.get(self._name, {}),
        }
        return self._table.status()


@dataclass
class ScriptedNode:
    """One listening node."""

    name: str
    gateway: Gateway
    cluster: ScriptedCluster
    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    is_silent: bool = False
    advertised_url: str | None = None  # instead of its own
    _runner: web.AppRunner | None = None
    _silence_ends: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_url(self) -> str:
        return self.advertised_url or self.url

    async def start(self) -> None:
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """Die: connections break, and nobody listens any more."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self._silence_ends.set()
            self.gateway.close()
            for connection in list(runner.server.connections if runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    def fall_silent(self) -> None:
        """Accept connections and requests, and answer nothing, not even what is under way."""
        self.is_silent = True
        self._silence_ends.clear()

    def fault(self, path: str, times: int = 1, **what: Any) -> Fault:
        fault = Fault(path, times, **what)
        self.faults.append(fault)
        return fault

    def _next_fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and path.startswith(fault.path):
                fault.times -= 1
                return fault
        return self.cluster.chaos(path) if self.cluster.chaos is not None else None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        path = request.rel_url.raw_path
        if self.is_silent:
            await self._silence_ends.wait()
        self.cluster.note(self.name, path, content, request.headers.get("Distsync-Client", ""))
        fault = self._next_fault(path)
        if fault is not None:
            if fault.hold is not None:
                await fault.hold.wait()
            if fault.drop == "before":
                return _drop(request)
            if fault.answer is not None:
                return fault.answer() if callable(fault.answer) else fault.answer
        answer = await _through_asgi(self, request, content)
        if fault is not None and fault.hold_answer is not None:
            await fault.hold_answer.wait()
        if fault is not None and fault.drop == "after":
            return _drop(request)
        return answer


def _drop(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _through_asgi(
    node: ScriptedNode, request: web.Request, content: bytes
) -> web.StreamResponse:
    """Hand a request to the node's API and its answer back."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    inbox.put_nowait({"type": "http.request", "body": content, "more_body": False})
    state: dict[str, Any] = {"status": 500, "headers": [], "body": b"", "stream": None}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            state["status"], state["headers"] = message["status"], message["headers"]
            return
        is_stream = any(value == b"text/event-stream" for _, value in _pairs(state["headers"]))
        if not is_stream:
            state["body"] += message.get("body", b"")
            return
        if state["stream"] is None:
            state["stream"] = web.StreamResponse(headers=_headers(state["headers"]))
            await state["stream"].prepare(request)
        if node.is_silent:
            await node._silence_ends.wait()
        await state["stream"].write(message.get("body", b""))

    path = request.rel_url.raw_path
    scope = {
        "type": "http",
        "method": request.method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": request.rel_url.raw_query_string.encode(),
        "headers": [(k.lower().encode(), v.encode()) for k, v in request.headers.items()],
        "http_version": "1.1",
        "scheme": "http",
        "root_path": "",
        "client": None,
        "server": None,
    }
    running = asyncio.ensure_future(node.gateway(scope, inbox.get, send))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:  # the client has gone
        inbox.put_nowait({"type": "http.disconnect"})
        await asyncio.wait([running])
        raise
    if node.is_silent:
        await node._silence_ends.wait()
    if state["stream"] is not None:
        return state["stream"]  # type: ignore[no-any-return]
    return web.Response(
        status=state["status"], headers=_headers(state["headers"]), body=state["body"]
    )


def _pairs(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, bytes]]:
    return [(name.decode().lower(), value.split(b";")[0]) for name, value in headers]


def _headers(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {k.decode(): v.decode() for k, v in headers if k.lower() != b"content-length"}


def problem(status: int, code: str, **fields: Any) -> Callable[[], web.Response]:
    """Return what answers with a node's problem."""
    body = {"code": code, "status": status, "detail": code, "retriable": True, **fields}
    headers = {"Distsync-Leader": fields["leader_url"]} if "leader_url" in fields else {}
    return lambda: web.Response(
        status=status,
        body=msgspec.json.encode(body),
        headers=headers,
        content_type="application/problem+json",
    )


class ScriptedCluster:
    """Some nodes over one table. The leader is announced and nothing more: any node answers."""

    def __init__(self, queues: QueueService | None = None) -> None:
        self.table = Table()
        self.queues = queues
        self.nodes: dict[str, ScriptedNode] = {}
        self.asked: list[Asked] = []
        self.leader: str | None = None
        self.cluster_id = "cluster-1"
        self.status_changes: dict[str, dict[str, Any]] = {}
        self.chaos: Callable[[str], Fault | None] | None = None

    async def start(self, count: int) -> None:
        for number in range(1, count + 1):
            await self.add(f"node-{number}")
        self.leader = "node-1"

    async def add(self, name: str) -> ScriptedNode:
        node = self.nodes[name] = ScriptedNode(name, self.make_gateway(name), self)
        await node.start()
        return node

    def make_gateway(self, name: str) -> Gateway:
        view: Any = _View(self.table, self, name)
        return build_public_app(view, node_name=name, queues=self.queues, options=QUICK)

    async def stop(self) -> None:
        for node in self.nodes.values():
            await node.stop()
        self.table.stop()

    def members(self) -> tuple[Member, ...]:
        return tuple(
            Member(
                id=MemberId(f"id-{node.name}"),
                name=node.name,
                peer_url="",
                client_url=node.client_url,
                voter=True,
            )
            for node in self.nodes.values()
        )

    def announced_leader_url(self) -> str | None:
        return None if self.leader is None else self.nodes[self.leader].client_url

    def forget_faults(self) -> None:
        for node in self.nodes.values():
            node.faults.clear()

    def urls(self) -> list[str]:
        return [node.url for node in self.nodes.values()]

    def note(self, node: str, path: str, content: bytes, client: str) -> None:
        body = msgspec.json.decode(content) if content[:1] == b"{" else {}
        self.asked.append(Asked(node, path, body, client))

    def asked_for(self, path: str, node: str | None = None) -> list[Asked]:
        return [a for a in self.asked if a.path == path and (node is None or a.node == node)]


C = TypeVar("C", bound=ScriptedCluster)


class Served(Generic[C]):
    """A cluster in a thread of its own."""

    def __init__(self, make: Callable[[], C], nodes: int) -> None:
        async def start() -> C:
            cluster = make()
            await cluster.start(nodes)
            return cluster

        self.portal = Portal("cluster-under-test")
        self.cluster = self.portal.call(start)

    def close(self) -> None:
        self.portal.close(self.cluster.stop)
