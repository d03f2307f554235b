from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from distsync_node.raft.types import Member, MemberId
from unit.services.nodes import TestCluster, TestNode, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with running(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def member(tmp_path: Path) -> AsyncIterator[TestNode]:
    """A node of a cluster whose other two, b and c, never started."""
    node = TestNode("n1", tmp_path)
    await node.start()
    others = tuple(Member(MemberId(name), name, "http://127.0.0.1:1") for name in ("b", "c"))
    await node.service.bootstrap("k", (node.member, *others))
    yield node
    await node.stop()
