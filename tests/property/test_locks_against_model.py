"""The lock machine does what a naive model says, after any history.

Two drivers of the same comparison: Hypothesis, which looks for short histories and shrinks what it
finds, and seeded random walks, which are longer and keep the locks contended.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from distsync_node.locks import deadlines, hashing, limits, state
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Downgrade,
    Expire,
    ExpiredGrant,
    ExpiredSession,
    ExpiredWait,
    FencingToken,
    KeepAlive,
    LockCommand,
    LockMode,
    OpenSession,
    Release,
    Renew,
    SessionId,
    Upgrade,
)
from property.lock_comparison import ROOMY, TIGHT, Bounds, Comparison

USUAL_LIMITS = {"a": None, "b": 2, "c": None, "d": 1}
NAMES = tuple(USUAL_LIMITS)
OWNERS = ("ann", "ben", "cid", "dan", "eve", "fay", "gus")
SESSIONS = (SessionId("s1"), SessionId("s2"))
MODES = (LockMode.EXCLUSIVE, LockMode.SHARED, LockMode.SHARED)
STEPS_MS = (0, 0, 0, 0, 0, 0, 0, 10, 10, 20, 1)  # so that deadlines are often met exactly
LONG_STEPS_MS = (0, 0, 10, 50, 150, 450)
TTLS_MS = (10, 100, 400, 1_000)
WAITS_MS = (0, 40, 400, 1_000, 1_000)


class Commands:
    """Makes commands; `pick` chooses one of a few things."""

    def __init__(self, comparison: Comparison, pick: Callable[[Any], Any]) -> None:
        self._comparison = comparison
        self._pick = pick

    def _key(self) -> dict[str, Any]:
        key = self._comparison.key()
        return {"key": key, "digest": key.request.encode()}

    def _owner(self) -> str:
        """Any owner, more often one with little at stake, so that queues grow."""
        model = self._comparison.model
        owner = self._pick(OWNERS)
        busy = {one.owner for one in model.held} | {one.owner for one in model.waits}
        idle = [one for one in OWNERS if one not in busy]
        return self._pick(idle) if idle and self._pick((True, False)) else owner

    def acquire(self) -> LockCommand:
        order = list(NAMES)
        names = [
            order.pop(self._pick(range(len(order)))) for _ in range(self._pick((1, 1, 1, 2, 3)))
        ]
        session = self._pick((None, None, None, *self._sessions()))
        return Acquire(
            **self._key(),
            names=tuple(names),
            owner=self._owner(),
            mode=self._pick(MODES),
            ttl_ms=0 if session else self._pick(TTLS_MS),
            wait_ms=self._pick(WAITS_MS),
            limit=self._limit(names),
            session=session,
        )

    def _sessions(self) -> tuple[SessionId, ...]:
        """Those that are open, and sometimes one that need not be."""
        is_open = tuple(SessionId(one) for one in self._comparison.model.sessions)
        return self._pick((is_open, is_open, is_open, SESSIONS[:1]))

    def _limit(self, names: list[str]) -> int | None:
        usual = self._comparison.model.limits.get(names[0], USUAL_LIMITS[names[0]])
        limit: int | None = self._pick((usual,) * 9 + (3,))
        return limit

    def _held(self, mode: LockMode | None = None) -> dict[str, Any]:
        """Name, owner and token of a grant: a current one, or one that is nearly right."""
        held = self._comparison.model.held
        found = [one for one in held if one.mode is mode] or held
        if not found:
            return {"name": "a", "owner": "ann", "token": FencingToken(1)}
        one = self._pick(found)
        token = FencingToken(one.token - self._pick((0,) * 7 + (1,)))
        return {"name": one.name, "owner": one.owner, "token": token}

    def release(self) -> LockCommand:
        return Release(**self._key(), **self._held())

    def force_release(self) -> LockCommand:
        if self._pick((True, False)):
            held = {**self._held(), "owner": "admin"}
        else:
            held = {"name": self._pick(NAMES), "owner": "", "token": FencingToken(0)}
        return Release(**self._key(), **held, force=True)

    def upgrade(self) -> LockCommand:
        held = self._held(LockMode.SHARED)
        return Upgrade(**self._key(), **held, wait_ms=self._pick(WAITS_MS))

    def downgrade(self) -> LockCommand:
        return Downgrade(**self._key(), **self._held(LockMode.EXCLUSIVE))

    def renew(self) -> LockCommand:
        return Renew(**self._held(), ttl_ms=self._pick(TTLS_MS))

    def open_session(self) -> LockCommand:
        return OpenSession(
            **self._key(), session=self._pick(SESSIONS), ttl_ms=self._pick((100, 1_000))
        )

    def keep_alive(self) -> LockCommand:
        return KeepAlive(sessions=self._pick((SESSIONS, SESSIONS[:1], ())))

    def close_session(self) -> LockCommand:
        return CloseSession(**self._key(), session=self._pick(SESSIONS))

    def cancel(self) -> LockCommand:
        wait = self._pick(self._comparison.model.waits)
        return Cancel(key=wait.key, attempt=wait.attempt - self._pick((0, 0, 1)))

    def retry(self) -> LockCommand:
        command: LockCommand = self._pick(self._comparison.sent[-30:])
        return command

    def retry_waiting(self) -> LockCommand:
        key = self._pick(self._comparison.model.waits).key
        found: LockCommand = next(one for one in self._comparison.sent if one.key == key)
        return found

    def reuse_request_id(self) -> LockCommand:
        asked = self._pick(self._comparison.sent)
        fields = {name: getattr(asked, name) for name in asked.__struct_fields__}
        fields["key"] = self._pick(self._comparison.sent).key
        fields["digest"] = b"other"
        again: LockCommand = type(asked)(**fields)
        return again

    def expire_one(self) -> LockCommand:
        """An expiry that names one thing, with a deadline that may be another."""
        model = self._comparison.model
        off_by = self._pick((-10, -1, 0, 0, 1))
        grants = [
            ExpiredGrant(one.name, one.owner, FencingToken(one.token), model.deadline(one) + off_by)
            for one in model.held
        ]
        sessions = [
            ExpiredSession(SessionId(one), deadline_ms + off_by)
            for one, (_, deadline_ms, _) in model.sessions.items()
        ]
        waits = [ExpiredWait(one.key, one.deadline + off_by) for one in model.waits]
        return Expire(
            grants=(self._pick(grants),) if grants else (),
            sessions=(self._pick(sessions),) if sessions and self._pick((True, False)) else (),
            waits=(self._pick(waits),) if waits else (),
        )


def expire_what_is_due(comparison: Comparison, step_ms: int) -> None:
    """Let time pass and do what a leader does."""
    due = comparison.machine.due(comparison.now + step_ms)
    if due is not None:
        comparison.send(due, step_ms)


class LocksAgainstModel(RuleBasedStateMachine):
    """One history, command by command."""

    def __init__(self) -> None:
        super().__init__()
        self.comparison = Comparison()

    def send(self, data: st.DataObject, what: str) -> None:
        def pick(values: Any) -> Any:
            return data.draw(st.sampled_from(values))

        command = getattr(Commands(self.comparison, pick), what)()
        self.comparison.send(command, pick(STEPS_MS))

    @initialize(data=st.data())
    def open_a_session(self, data: st.DataObject) -> None:
        self.send(data, "open_session")

    @rule(data=st.data())
    def acquire(self, data: st.DataObject) -> None:
        self.send(data, "acquire")

    @rule(data=st.data())
    def acquire_more(self, data: st.DataObject) -> None:
        self.send(data, "acquire")

    @rule(data=st.data(), what=st.sampled_from(("open_session", "keep_alive", "close_session")))
    def use_sessions(self, data: st.DataObject, what: str) -> None:
        self.send(data, what)

    @precondition(lambda self: self.comparison.model.held)
    @rule(
        data=st.data(),
        what=st.sampled_from(
            ("release", "renew", "upgrade", "downgrade", "expire_one", "force_release")
        ),
    )
    def use_a_grant(self, data: st.DataObject, what: str) -> None:
        self.send(data, what)

    @precondition(lambda self: self.comparison.model.waits)
    @rule(data=st.data(), what=st.sampled_from(("cancel", "retry_waiting")))
    def use_a_wait(self, data: st.DataObject, what: str) -> None:
        self.send(data, what)

    @rule(data=st.data(), what=st.sampled_from(("retry", "retry", "reuse_request_id")))
    def send_again(self, data: st.DataObject, what: str) -> None:
        self.send(data, what)

    @rule(step_ms=st.sampled_from(LONG_STEPS_MS))
    def expire(self, step_ms: int) -> None:
        expire_what_is_due(self.comparison, step_ms)

    @rule()
    def restore(self) -> None:
        self.comparison.restore_shadow()

    @invariant()
    def everything_holds(self) -> None:
        self.comparison.check_all()


@pytest.fixture(params=[ROOMY, TIGHT], ids=["roomy", "tight"])
def bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bounds:
    """Run under these bounds."""
    chosen: Bounds = request.param
    for name in Bounds.__dataclass_fields__:
        monkeypatch.setattr(limits, name, getattr(chosen, name))
    # Housekeeping at every turn instead of every few thousand.
    monkeypatch.setattr(deadlines, "SLACK", 1)
    monkeypatch.setattr(hashing, "MAX_PENDING", 3)
    monkeypatch.setattr(state, "SUPERSEDED_SLACK", 0)
    return chosen


def test_machine_does_what_the_model_says(bounds: Bounds) -> None:
    run_state_machine_as_test(
        LocksAgainstModel,
        settings=settings(
            max_examples=80,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


WEIGHTS = {
    "acquire": 30,
    "release": 10,
    "force_release": 1,
    "upgrade": 6,
    "downgrade": 3,
    "renew": 4,
    "open_session": 2,
    "keep_alive": 2,
    "close_session": 1,
    "cancel": 3,
    "retry": 4,
    "retry_waiting": 3,
    "reuse_request_id": 1,
    "expire_one": 3,
}


def walk(seed: int, steps: int) -> Comparison:
    """Take a random walk and return the comparison at its end."""
    chance = random.Random(seed)
    comparison = Comparison()
    commands = Commands(comparison, chance.choice)
    comparison.send(commands.open_session(), 0)
    for _ in range(steps):
        if chance.random() < 0.03:
            comparison.restore_shadow()
        if chance.random() < 0.15:
            expire_what_is_due(comparison, chance.choice(LONG_STEPS_MS))
        (what,) = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if what in ("cancel", "retry_waiting") and not comparison.model.waits:
            continue
        comparison.send(getattr(commands, what)(), chance.choice(STEPS_MS))
        comparison.check_all()
    return comparison


@pytest.mark.parametrize("seed", range(25))
def test_machine_does_what_the_model_says_on_long_walks(bounds: Bounds, seed: int) -> None:
    comparison = walk(seed, 250)
    assert comparison.last_token > 25


DESCRIBE_WALK = """
from distsync_node.locks import limits
limits.REQUEST_MEMORY_MS = 300
from property.test_locks_against_model import walk
comparison = walk(11, 200)
print(comparison.machine.state_hash(), comparison.machine.lock_views())
"""


def test_the_same_log_gives_the_same_state_under_any_hash_seed() -> None:
    def describe(seed: str) -> str:
        tests = str(Path(__file__).parent.parent)
        return subprocess.run(
            [sys.executable, "-c", DESCRIBE_WALK],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": tests},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    first = describe("1")
    assert first == describe("2")
    assert len(first) > 100
