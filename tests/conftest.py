from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from redis_server import RedisServer


def pytest_configure() -> None:
    """A shell's job in the background ignores Ctrl-C, and so would everything that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis of the module's own."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server
