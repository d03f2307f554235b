"""Bugs planted in the scripts of the queues are found. `make mutants` looks for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from distsync_node.queues.scripts import load_scripts
from property.queue_mutants import MUTANTS, Mutant, first_failure, quick_server
from queue_harness import read_with_test_clock
from redis_server import RedisServer

QUICKLY_FOUND = (
    "a receipt of an earlier claim is taken",
    "a receipt is taken after its deadline, until it is swept",
    "pop takes messages out for good",
    "pop leaves messages where another can claim them",
    "unclaim spends a delivery",
    "push is not idempotent",
    "pop is not idempotent",
    "one delivery too many before the dead letters",
    "sweep takes claims back before their deadline",
    "extend forgets the deadline that is swept by",
    "a token raises the fence unverified",
    "a group has several messages in flight",
)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with quick_server() as server:
        yield server


def test_the_walks_that_find_bugs_pass_without(server: RedisServer) -> None:
    assert first_failure(server, read_with_test_clock, walks=5) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_every_bug_has_its_place_in_scripts_that_redis_takes(
    server: RedisServer, mutant: Mutant
) -> None:
    with server.client() as client:
        for script in load_scripts(mutant.read()).values():
            assert client.script_load(script.source) == script.sha


@pytest.mark.parametrize("name", QUICKLY_FOUND)
def test_a_planted_bug_is_found(server: RedisServer, name: str) -> None:
    (mutant,) = (one for one in MUTANTS if one.name == name)
    assert first_failure(server, mutant.read(), walks=20) is not None
