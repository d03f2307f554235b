"""Every bug planted in the scripts of the cache is found."""

from __future__ import annotations

import pytest

from property.cache_script_mutants import MUTANTS, TRIAL
from property.script_mutants import Mutant
from redis_server import RedisServer


def test_the_walks_that_find_bugs_pass_without(server: RedisServer) -> None:
    assert TRIAL.first_failure(server, walks=2) is None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda one: one.name)
def test_a_planted_bug_is_found(server: RedisServer, mutant: Mutant) -> None:
    assert TRIAL.first_failure(server, mutant) is not None
