"""The lock machine and the naive model side by side, command by command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    Done,
    Expire,
    Granted,
    KeepAlive,
    LockCommand,
    LockMode,
    Outcome,
    RefusalCode,
    Refused,
    Renew,
    RequestKey,
    Upgrade,
    Waiting,
)
from distsync_node.locks.machine import LockMachine
from property.lock_model import Answer, LockModel


@dataclass(frozen=True)
class Bounds:
    """The bounds a run is made under; small ones, so that they are met."""

    MAX_WAITERS_PER_LOCK: int = 1_000
    MAX_WAITERS: int = 1_000
    MAX_LOCKS: int = 1_000
    MAX_GRANTS: int = 1_000
    MAX_SESSIONS: int = 1_000
    MAX_REQUESTS_REMEMBERED: int = 1_000
    REQUEST_MEMORY_MS: int = 300


ROOMY = Bounds()
TIGHT = Bounds(
    MAX_WAITERS_PER_LOCK=2,
    MAX_WAITERS=4,
    MAX_LOCKS=2,
    MAX_GRANTS=3,
    MAX_SESSIONS=1,
    MAX_REQUESTS_REMEMBERED=3,
)


class Comparison:
    """One history: the machine, a shadow restored from one of its snapshots, and the model.

    The tokens are the machine's own; they must rise. The rest the model says first.
    """

    def __init__(self) -> None:
        self.machine = LockMachine()
        self.shadow = LockMachine()
        self.model = LockModel()
        self.now = 1_000
        self.last_token = 0
        self.sent: list[Any] = []
        self.number = 0

    # --- Sending --------------------------------------------------------------------------

    def key(self) -> RequestKey:
        self.number += 1
        return RequestKey("client", f"r{self.number}")

    def send(self, command: LockCommand, step_ms: int) -> None:
        self.now += step_ms
        if hasattr(command, "key") and not isinstance(command, Cancel):
            self.sent.append(command)
        before = self.visible()
        outcome = self.machine.apply(command, self.now)
        notices = self.machine.take_notices()
        changes = self.machine.take_changes()
        self.compare_with_shadow(command, outcome, notices, changes)
        expected = self.model.apply(command, self.now, [notice.key for notice in notices])
        self.compare(command, expected, outcome)
        assert [n.key for n in notices] == list(dict.fromkeys(n.key for n in notices))
        assert {n.key for n in notices} == set(self.model.ended)
        for notice in notices:
            attempt, ending = self.model.ended[notice.key]
            assert notice.attempt == attempt
            self.compare_answer(notice.key, ending, notice.outcome)
        after = self.visible()
        changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        assert changed <= set(changes)

    def visible(self) -> dict[str, Any]:
        return {
            view.name: (
                [(held.owner, held.mode, held.token) for held in view.holders],
                [(wait.owner, wait.mode) for wait in view.waiters],
            )
            for view in self.machine.lock_views()
        }

    def compare_with_shadow(
        self, command: LockCommand, outcome: Outcome, notices: list[Any], changes: list[str]
    ) -> None:
        assert self.shadow.apply(command, self.now) == outcome
        assert self.shadow.take_notices() == notices
        assert self.shadow.take_changes() == changes

    def compare(self, command: LockCommand, expected: Answer, outcome: Outcome) -> None:
        if expected[0] == "deadlock":
            assert isinstance(outcome, Refused)
            assert outcome.code is RefusalCode.DEADLOCK
            assert isinstance(command, Acquire | Upgrade)
            self.check_cycle(outcome.cycle, command.owner, expected[1])
        else:
            key = command.key if not isinstance(command, Renew | KeepAlive | Expire) else None
            self.compare_answer(key, expected, outcome)

    def check_cycle(self, cycle: tuple[str, ...], owner: str, edges: set[Any]) -> None:
        assert cycle[0] == owner
        assert len(set(cycle)) == len(cycle)
        assert set(zip(cycle, (*cycle[1:], cycle[0]), strict=True)) <= edges

    def compare_answer(self, key: RequestKey | None, expected: Answer, outcome: Outcome) -> None:
        match outcome:
            case Granted():
                assert expected[:3] == ("granted", outcome.owner, outcome.mode)
                assert expected[4] == outcome.deadline_ms
                tokens = tuple((one.name, one.token) for one in outcome.grants)
                if expected[3] is None:
                    assert key is not None
                    self.learn_tokens(key, tokens)
                else:
                    assert tokens == expected[3]
            case Waiting():
                assert expected == ("waiting", outcome.attempt)
            case Done(session=None):
                assert expected == ("done", outcome.deadline_ms, outcome.missing)
            case Done():
                assert expected == ("opened", outcome.deadline_ms, outcome.session)
            case Refused():
                assert expected == ("refused", outcome.code)

    def learn_tokens(self, key: RequestKey, tokens: tuple[tuple[str, int], ...]) -> None:
        for name, token in tokens:
            assert token > self.last_token
            self.last_token = token
            self.model.number(name, key, token)

    def restore_shadow(self) -> None:
        self.shadow = LockMachine.restore(self.machine.snapshot())
        assert self.shadow.state_hash() == self.machine.state_hash()

    # --- What must hold -------------------------------------------------------------------

    def machine_is_consistent(self) -> None:
        self.machine.check_invariants()
        assert self.shadow.state_hash() == self.machine.state_hash()

    def holders_and_waiters_are_those_of_the_model(self) -> None:
        views = {view.name: view for view in self.machine.lock_views()}
        assert set(views) == self.model.lock_names()
        for name, view in views.items():
            held = sorted(self.model.holders(name), key=lambda one: one.token)
            assert [
                (one.owner, one.mode, one.token, self.model.deadline(one), one.session)
                for one in held
            ] == [(h.owner, h.mode, h.token, h.deadline_ms, h.session) for h in view.holders]
            assert [
                (one.owner, one.mode, one.deadline, one.token is not None)
                for one in self.model.queue(name)
            ] == [(w.owner, w.mode, w.deadline_ms, w.upgrade) for w in view.waiters]
            assert view.limit == self.model.limits.get(name)

    def holders_are_compatible(self) -> None:
        for view in self.machine.lock_views():
            modes = [one.mode for one in view.holders]
            assert modes.count(LockMode.EXCLUSIVE) <= 1
            assert LockMode.EXCLUSIVE not in modes or len(modes) == 1
            assert view.limit is None or len(modes) <= view.limit

    def nobody_waits_who_could_enter_and_no_owners_wait_in_a_circle(self) -> None:
        assert not any(self.model.may_enter(wait) for wait in self.model.waits)
        edges = self.model.edges()
        assert not any(owner in self.model.reachable(edges, owner) for owner, _ in edges)

    def everything_due_is_proposed(self) -> None:
        due = self.machine.due(self.now) or Expire()
        model = self.model
        own = [one for one in model.held if one.deadline is not None]
        assert sorted((one.name, one.token, one.deadline_ms) for one in due.grants) == sorted(
            (one.name, one.token, one.deadline) for one in own if model.deadline(one) <= self.now
        )
        assert sorted((one.session, one.deadline_ms) for one in due.sessions) == sorted(
            (name, at_ms) for name, (_, at_ms, _) in model.sessions.items() if at_ms <= self.now
        )
        assert sorted((one.key.request, one.deadline_ms) for one in due.waits) == sorted(
            (one.key.request, one.deadline) for one in model.waits if one.deadline <= self.now
        )
        deadlines = [model.deadline(one) for one in own]
        deadlines += [at_ms for _, at_ms, _ in model.sessions.values()]
        deadlines += [one.deadline for one in model.waits]
        assert self.machine.next_deadline_ms() == min(deadlines, default=None)
        assert self.machine.has_leases == bool(model.held or deadlines)

    def as_much_is_remembered_as_in_the_model(self) -> None:
        counts = self.machine.counts()
        assert counts.requests == len(self.model.memory)
        assert counts.finished_requests == len(self.model.over)

    def check_all(self) -> None:
        self.machine_is_consistent()
        self.holders_and_waiters_are_those_of_the_model()
        self.holders_are_compatible()
        self.nobody_waits_who_could_enter_and_no_owners_wait_in_a_circle()
        self.everything_due_is_proposed()
        self.as_much_is_remembered_as_in_the_model()
