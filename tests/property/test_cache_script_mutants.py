"""Every bug planted in the scripts of the cache is found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from property.cache_script_comparison import read_with_test_clock
from property.cache_script_mutants import MUTANTS, first_failure
from property.queue_mutants import Mutant, quick_server
from redis_server import RedisServer


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with quick_server() as server:
        yield server


def test_the_walks_that_find_bugs_pass_without(server: RedisServer) -> None:
    assert first_failure(server, read_with_test_clock, walks=2) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_planted_bug_is_found(server: RedisServer, mutant: Mutant) -> None:
    assert first_failure(server, mutant.read(read_with_test_clock)) is not None
