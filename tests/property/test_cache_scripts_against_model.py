"""The scripts of the cache do what the simulator's Redis does, after any history."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from property.cache_script_comparison import WEIGHTS, Commands, Comparison
from redis_server import RedisServer, find_servers

WALK_STEPS = 400
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


def walk(comparison: Comparison, seed: int, steps: int = WALK_STEPS) -> None:
    """Take random steps."""
    choices = random.Random(seed)

    def pick(some: Any) -> Any:
        return choices.choice(list(some))

    commands = Commands(comparison, pick)
    for name in choices.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
        getattr(commands, name)()


@pytest.mark.parametrize("seed", range(6))
def test_long_histories(server: RedisServer, seed: int) -> None:
    comparison = Comparison(server)
    try:
        walk(comparison, seed)
    finally:
        comparison.close()
