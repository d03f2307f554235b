from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from unit.services.nodes import TestCluster, running


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[TestCluster]:
    async with running(tmp_path) as cluster:
        yield cluster
