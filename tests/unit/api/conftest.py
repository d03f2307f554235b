from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from distsync_node.api.app import build_peer_app, build_public_app
from distsync_node.api.gateway import Gateway
from distsync_node.api.options import ApiOptions
from unit.api.local_node import LocalNode

SECRET = "a shared secret"
QUICK = ApiOptions(
    body_timeout_ms=50, disconnect_check_ms=2, watch_keep_alive_ms=20, send_timeout_ms=100
)


@pytest.fixture
def node() -> LocalNode:
    return LocalNode()


@pytest.fixture
def app(node: LocalNode) -> Gateway:
    return build_public_app(node, node_name="node-1", options=QUICK)


@pytest.fixture
def peer_app(node: LocalNode) -> Gateway:
    return build_peer_app(
        node,
        SECRET,
        {},
        node_name="node-1",
        peer_url="http://node-1.test:8180",
        client_url="http://node-1.test:8080",
        options=QUICK,
    )


@pytest.fixture
async def client(app: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://node.test"
    ) as client:
        yield client


@pytest.fixture
async def admin(peer_app: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(peer_app),
        base_url="http://node.test",
        headers={"authorization": f"Bearer {SECRET}"},
    ) as client:
        yield client
