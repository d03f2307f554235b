from __future__ import annotations

from collections.abc import Iterator

import pytest

from property.script_mutants import quick_server
from redis_server import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with quick_server() as server:
        yield server
