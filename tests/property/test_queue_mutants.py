"""Every bug planted in the scripts of the queues is found."""

from __future__ import annotations

import pytest

from distsync_node.queues.scripts import load_scripts
from property.queue_mutants import MUTANTS, TRIAL
from property.script_mutants import Mutant
from redis_server import RedisServer


def test_the_walks_that_find_bugs_pass_without(server: RedisServer) -> None:
    assert TRIAL.first_failure(server, walks=5) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_every_bug_has_its_place_in_scripts_that_redis_takes(
    server: RedisServer, mutant: Mutant
) -> None:
    with server.client() as client:
        for script in load_scripts(mutant.read(TRIAL.read)).values():
            assert client.script_load(script.source) == script.sha


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_planted_bug_is_found(server: RedisServer, mutant: Mutant) -> None:
    assert TRIAL.first_failure(server, mutant) is not None
