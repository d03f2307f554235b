"""The queues of a real Redis do what a naive model says, after any history.

Two drivers of the same comparison: Hypothesis, which looks for short histories and shrinks what it
finds, and seeded random walks, which are longer, take the calls to two nodes in turn, and in which
Redis is killed and restarted. After each call everything that Redis has of the queue is compared
with the model, and the invariants of the data model are checked.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from property.queue_commands import WEIGHTS, Commands
from property.queue_comparison import Comparison
from property.script_mutants import take_steps
from redis_server import RedisServer

EXAMPLES = 40
STEPS = 40
WALKS = 8
WALK_STEPS = 150
NAMES = ("orders", "a{b}c", "}{", "with space", "naïve/队列%", "%7Borders%7D")


def make_machine(redis: RedisServer, **options: Any) -> type[RuleBasedStateMachine]:
    """Return a machine of one rule per command."""

    class QueuesAgainstModel(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.comparison = Comparison(redis, nodes=1, **options)

        def teardown(self) -> None:
            self.comparison.close()

    def add_rule(name: str) -> None:
        @rule(data=st.data())
        def run(self: QueuesAgainstModel, data: st.DataObject) -> None:
            commands = Commands(self.comparison, lambda some: data.draw(st.sampled_from(some)))
            getattr(commands, name)()

        run.__name__ = name
        setattr(QueuesAgainstModel, name, run)

    for name in WEIGHTS:
        add_rule(name)
    return QueuesAgainstModel


def test_short_histories(redis: RedisServer) -> None:
    run_state_machine_as_test(
        make_machine(redis),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("seed", range(WALKS))
def test_long_histories_over_two_nodes_with_restarts(redis: RedisServer, seed: int) -> None:
    comparison = Comparison(redis, queue=NAMES[seed % len(NAMES)])
    choices = random.Random(seed)
    before = choices.randrange(WALK_STEPS)
    try:
        take_steps(lambda pick: Commands(comparison, pick), WEIGHTS, choices, before)
        comparison.restart()
        take_steps(lambda pick: Commands(comparison, pick), WEIGHTS, choices, WALK_STEPS - before)
    finally:
        comparison.close()
