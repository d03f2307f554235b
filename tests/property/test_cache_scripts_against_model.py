"""The scripts of the cache do what the simulator's Redis does, after any history."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.cache_script_comparison import WEIGHTS, Commands, Comparison, read_with_test_clock
from property.cache_script_mutants import walk
from redis_server import RedisServer, find_servers

SERVERS = find_servers()


@pytest.fixture(scope="module", params=sorted(SERVERS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    directory = Path(tmp_path_factory.mktemp("redis"))
    program = SERVERS[request.param]
    with RedisServer(directory, program=program, options={"appendfsync": "no"}) as server:
        yield server


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_short_histories(server: RedisServer, data: st.DataObject) -> None:
    comparison = Comparison(server)
    try:
        commands = Commands(comparison, lambda some: data.draw(st.sampled_from(some)))
        for name in data.draw(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=25)):
            getattr(commands, name)()
    finally:
        comparison.close()


@pytest.mark.parametrize("seed", range(6))
def test_long_histories(server: RedisServer, seed: int) -> None:
    walk(server, read_with_test_clock, seed)
