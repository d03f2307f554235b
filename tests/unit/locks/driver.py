"""Short words for talking to a lock machine in tests.

Every call is a fresh request at the current time unless `key` names an earlier one; the digest is
made from what is asked for, as the API does it. After each command the machine checks itself.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Done,
    Downgrade,
    Expire,
    FencingToken,
    Granted,
    KeepAlive,
    LockCommand,
    LockMode,
    OpenSession,
    Outcome,
    RefusalCode,
    Refused,
    Release,
    Renew,
    RequestKey,
    SessionId,
    Upgrade,
    Waiting,
)
from distsync_node.locks.machine import LockMachine

EXCLUSIVE = LockMode.EXCLUSIVE
SHARED = LockMode.SHARED


def key_of(request: str) -> RequestKey:
    return RequestKey("client", request)


class Locks:
    """A machine with a clock."""

    def __init__(self, machine: LockMachine | None = None, *, checked: bool = True) -> None:
        self.machine = machine or LockMachine()
        self.now_ms = 1_000
        self.endings: dict[str, Outcome] = {}  # of waiting requests, by request id
        self.attempts: dict[str, int] = {}  # the attempts those endings named
        self._number = 0
        self._checked = checked

    # --- Sending --------------------------------------------------------------------------

    def apply(self, command: LockCommand) -> Outcome:
        outcome = self.machine.apply(command, self.now_ms)
        for notice in self.machine.take_notices():
            self.endings[notice.key.request] = notice.outcome
            self.attempts[notice.key.request] = notice.attempt
        if self._checked:
            self.machine.check_invariants()
        return outcome

    def pass_time(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    def expire(self) -> Expire | None:
        """Do what the leader does: propose what is due, and apply it."""
        due = self.machine.due(self.now_ms)
        if due is not None:
            self.apply(due)
        return due

    def pass_time_and_expire(self, milliseconds: int) -> Expire | None:
        self.pass_time(milliseconds)
        return self.expire()

    def _keyed(self, key: str | None, *asked: Any) -> dict[str, Any]:
        self._number += 1
        digest = blake2b(repr(asked).encode(), digest_size=8).digest()
        return {"key": key_of(key or f"request-{self._number}"), "digest": digest}

    # --- Commands -------------------------------------------------------------------------

    def acquire(
        self,
        owner: str,
        *names: str,
        mode: LockMode = EXCLUSIVE,
        ttl_ms: int = 10_000,
        wait_ms: int = 0,
        limit: int | None = None,
        session: str | None = None,
        key: str | None = None,
    ) -> Outcome:
        session_id = None if session is None else SessionId(session)
        return self.apply(
            Acquire(
                **self._keyed(key, "acquire", names, owner, mode, wait_ms, limit, session),
                names=names,
                owner=owner,
                mode=mode,
                ttl_ms=0 if session else ttl_ms,
                wait_ms=wait_ms,
                limit=limit,
                session=session_id,
            )
        )

    def hold(self, owner: str, *names: str, **options: Any) -> int:
        """Acquire, which must succeed at once, and return the (first) token."""
        return tokens_of(self.acquire(owner, *names, **options))[0]

    def share(self, owner: str, *names: str, **options: Any) -> int:
        return self.hold(owner, *names, mode=SHARED, **options)

    def wait(self, owner: str, *names: str, **options: Any) -> str:
        """Acquire, which must wait, and return the request id: the owner's name by default."""
        options = {"wait_ms": 60_000, "key": owner, **options}
        assert isinstance(self.acquire(owner, *names, **options), Waiting)
        key: str = options["key"]
        return key

    def wait_shared(self, owner: str, *names: str, **options: Any) -> str:
        return self.wait(owner, *names, mode=SHARED, **options)

    def upgrade(
        self, owner: str, name: str, token: int, *, wait_ms: int = 0, key: str | None = None
    ) -> Outcome:
        keyed = self._keyed(key, "upgrade", owner, name, token, wait_ms)
        return self.apply(
            Upgrade(**keyed, name=name, owner=owner, token=FencingToken(token), wait_ms=wait_ms)
        )

    def downgrade(self, owner: str, name: str, token: int, *, key: str | None = None) -> Outcome:
        keyed = self._keyed(key, "downgrade", owner, name, token)
        return self.apply(Downgrade(**keyed, name=name, owner=owner, token=FencingToken(token)))

    def release(
        self,
        owner: str,
        name: str,
        token: int,
        *,
        force: bool = False,
        key: str | None = None,
    ) -> Outcome:
        keyed = self._keyed(key, "release", owner, name, token, force)
        return self.apply(
            Release(**keyed, name=name, owner=owner, token=FencingToken(token), force=force)
        )

    def renew(self, owner: str, name: str, token: int, ttl_ms: int = 10_000) -> Outcome:
        return self.apply(Renew(name=name, owner=owner, token=FencingToken(token), ttl_ms=ttl_ms))

    def cancel(self, request: str, attempt: int = 1) -> Outcome:
        return self.apply(Cancel(key=key_of(request), attempt=attempt))

    def open_session(
        self, session: str, *, ttl_ms: int = 10_000, key: str | None = None
    ) -> Outcome:
        keyed = self._keyed(key, "open", ttl_ms)  # the id is minted by the node, not asked for
        return self.apply(OpenSession(**keyed, session=SessionId(session), ttl_ms=ttl_ms))

    def keep_alive(self, *sessions: str) -> Outcome:
        return self.apply(KeepAlive(sessions=tuple(SessionId(one) for one in sessions)))

    def close_session(self, session: str, *, key: str | None = None) -> Outcome:
        keyed = self._keyed(key, "close", session)
        return self.apply(CloseSession(**keyed, session=SessionId(session)))

    # --- Looking --------------------------------------------------------------------------

    def holders(self, name: str) -> list[str]:
        view = self.machine.lock_view(name)
        return [] if view is None else [holder.owner for holder in view.holders]

    def waiters(self, name: str) -> list[str]:
        view = self.machine.lock_view(name)
        return [] if view is None else [waiter.owner for waiter in view.waiters]

    def token(self, name: str, owner: str) -> int:
        view = self.machine.lock_view(name)
        assert view is not None
        return next(holder.token for holder in view.holders if holder.owner == owner)

    def restored(self) -> Locks:
        """Return the same locks on a machine restored from a snapshot."""
        copy = Locks(LockMachine.restore(self.machine.snapshot()), checked=self._checked)
        copy.now_ms = self.now_ms
        copy._number = self._number
        return copy


def tokens_of(outcome: Outcome | None) -> list[int]:
    assert isinstance(outcome, Granted), outcome
    return [grant.token for grant in outcome.grants]


def code_of(outcome: Outcome | None) -> RefusalCode:
    assert isinstance(outcome, Refused), outcome
    return outcome.code


def deadline_of(outcome: Outcome | None) -> int:
    assert isinstance(outcome, Granted | Done), outcome
    return outcome.deadline_ms


def attempt_of(outcome: Outcome | None) -> int:
    assert isinstance(outcome, Waiting), outcome
    return outcome.attempt
