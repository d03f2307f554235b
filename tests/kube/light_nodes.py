"""Pods without processes: nodes that only say who they are, for very many clusters at once.

They answer what the operator asks a cluster at rest, and are created by its bootstrap call as real
ones are. Nothing can be scaled, rolled or lost here: see kubelet_double for nodes that can.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from distsync_operator import names
from kube.api_double import ApiDouble, Body
from kube.kubelet_double import KubeletDouble


@dataclass
class LightNode:
    """A node by the name of its pod; `members` once it belongs to a cluster."""

    name: str
    address: str
    cluster_id: str | None = None
    members: list[dict[str, str]] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The identity of its disk."""
        return f"id-of-{self.name}"

    @property
    def leader(self) -> str | None:
        """The name of the member that leads: the first."""
        return self.members[0]["name"] if self.members else None

    def identity(self) -> dict[str, Any]:
        """GET /cluster/identity."""
        return {
            "member_id": self.id,
            "name": self.name,
            "state": "member" if self.members else "uninitialised",
            "cluster_id": self.cluster_id,
            "config_index": 1,
            "leader": self.leader,
            "peer_url": f"http://{self.address}:{names.PEER_PORT}",
            "client_url": f"http://{self.address}:{names.CLIENT_PORT}",
        }

    def status(self) -> dict[str, Any]:
        """GET /cluster/status."""
        leads = self.leader == self.name
        known = {"voter": True, "match_index": 1, "last_contact_ms": 50 if leads else None}
        return {
            "node": self.name,
            "member_id": self.id,
            "role": "leader" if leads else "follower",
            "leader": self.leader,
            "term": 1,
            "commit_index": 1,
            "config_index": 1,
            "cluster_id": self.cluster_id,
            "version": "0.1.0",
            "ready": True,
            "serving": bool(self.members),
            "ring_epoch": 1 if self.members else 0,
            "members": [{**member, **known} for member in self.members],
        }

    def ring(self) -> dict[str, Any]:
        """GET /cluster/ring."""
        servers = [{"name": member["name"]} for member in self.members]
        return {"epoch": 1, "virtual_nodes": 160, "servers": servers}


class LightKubelet(KubeletDouble):
    """Every pod is ready at once, and a light node answers at its address."""

    def __init__(self, api: ApiDouble, directory: Path) -> None:
        super().__init__(api, directory)
        self._light: dict[str, LightNode] = {}  # by address
        app = web.Application()
        app.router.add_get("/cluster/identity", self._identity)
        app.router.add_get("/cluster/status", self._status)
        app.router.add_get("/cluster/ring", self._ring)
        app.router.add_post("/cluster/bootstrap", self._bootstrap)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

    async def __aenter__(self) -> LightKubelet:
        await self._runner.setup()
        await super().__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__(*exc)
        await self._runner.cleanup()

    async def _live(self, pod: Body) -> None:
        if not self._is_scheduled(pod):
            return
        address, labels = pod["status"]["podIP"], pod["metadata"]["labels"]
        if labels[names.COMPONENT_LABEL] == names.NODE and address not in self._light:
            self._light[address] = LightNode(pod["metadata"]["name"], address)
            for port in (names.CLIENT_PORT, names.PEER_PORT):
                await web.TCPSite(self._runner, address, port).start()
        self._set_status(pod, ready=True)

    def _node(self, request: web.Request) -> LightNode:
        return self._light[request.host.rpartition(":")[0]]

    async def _identity(self, request: web.Request) -> web.Response:
        return web.json_response(self._node(request).identity())

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._node(request).status())

    async def _ring(self, request: web.Request) -> web.Response:
        return web.json_response(self._node(request).ring())

    async def _bootstrap(self, request: web.Request) -> web.Response:
        node, body = self._node(request), await request.json()
        node.cluster_id, node.members = body["cluster_id"], body["members"]
        return web.json_response(node.identity())
