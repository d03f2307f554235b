"""A second lock service, written to be obviously right: lists, loops and no index.

It says what each command must answer, given the state, and which waiting requests must have ended
after it. It does not number grants: the tests take the machine's tokens, check that they rise, and
tell the model. Every rule is written down here a second time, from the specification.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Acquire,
    Cancel,
    CloseSession,
    Downgrade,
    Expire,
    KeepAlive,
    LockMode,
    OpenSession,
    RefusalCode,
    Release,
    Renew,
    RequestKey,
    Upgrade,
)

X = LockMode.EXCLUSIVE
S = LockMode.SHARED

NOBODY = RequestKey("", "")

# ("granted", owner, mode, tokens, deadline), ("waiting", attempt), ("refused", code), ...
Answer = tuple[Any, ...]


@dataclass
class Held:
    name: str
    owner: str
    mode: LockMode
    deadline: int | None  # None: the session's
    session: str | None
    key: RequestKey
    token: int = 0


@dataclass
class Wait:
    key: RequestKey
    digest: bytes
    attempt: int
    owner: str
    mode: LockMode
    names: tuple[str, ...]
    deadline: int
    ttl: int
    session: str | None
    token: int | None = None  # of the shared grant, for an upgrade


@dataclass
class Memory:
    """What is remembered of a request; `state` is waiting, held, open or over."""

    digest: bytes
    state: str
    answer: Answer = ()
    grants: list[tuple[str, str, int]] = field(default_factory=list)  # name, owner, token
    session: str | None = None
    attempt: int = 0
    over_ms: int = 0


@dataclass
class LockModel:
    now: int = 0
    held: list[Held] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)  # in order of arrival
    sessions: dict[str, tuple[int, int, RequestKey]] = field(default_factory=dict)  # ttl, deadline
    limits: dict[str, int | None] = field(default_factory=dict)
    memory: dict[RequestKey, Memory] = field(default_factory=dict)
    over: list[RequestKey] = field(default_factory=list)  # in the order in which they ended
    ended: dict[RequestKey, tuple[int, Answer]] = field(default_factory=dict)
    new_grants: list[Held] = field(default_factory=list)

    # --- Looking around -------------------------------------------------------------------

    def holders(self, name: str) -> list[Held]:
        return [one for one in self.held if one.name == name]

    def queue(self, name: str) -> list[Wait]:
        """Upgrades first, then first come, first served."""
        mine = [one for one in self.waits if name in one.names]
        return [w for w in mine if w.token is not None] + [w for w in mine if w.token is None]

    def exists(self, name: str) -> bool:
        return bool(self.holders(name) or self.queue(name))

    def grant(self, name: str, owner: str, token: int) -> Held | None:
        found = [h for h in self.holders(name) if h.owner == owner and h.token == token]
        return found[0] if found else None

    def deadline(self, held: Held) -> int:
        if held.session is None:
            assert held.deadline is not None
            return held.deadline
        return self.sessions[held.session][1]

    def lock_names(self) -> set[str]:
        return {h.name for h in self.held} | {name for w in self.waits for name in w.names}

    def blockers(self, wait: Wait, name: str) -> list[str]:
        """Return the owners that keep a request (queued, or as if at the end) out of a lock."""
        holders = self.holders(name)
        if wait.token is not None:
            return [h.owner for h in holders if h.owner != wait.owner]
        earlier = []
        for other in self.queue(name):
            if other is wait:
                break
            earlier.append(other)
        everybody = [h.owner for h in holders] + [w.owner for w in earlier]
        if wait.mode is X:
            return everybody
        limit = self.limits.get(name)
        queued = [w for w in earlier if w.token is None]
        if limit is not None and len(holders) + len(queued) >= limit:
            return everybody
        writers = [h.owner for h in holders if h.mode is X]
        return writers + [w.owner for w in earlier if w.mode is X]

    def may_enter(self, wait: Wait) -> bool:
        return not any(self.blockers(wait, name) for name in wait.names)

    # --- The wait-for graph ---------------------------------------------------------------

    def edges(self) -> set[tuple[str, str]]:
        return {
            (wait.owner, blocker)
            for wait in self.waits
            for name in wait.names
            for blocker in self.blockers(wait, name)
        }

    @staticmethod
    def reachable(edges: set[tuple[str, str]], start: str) -> set[str]:
        reached: set[str] = set()
        while True:
            more = {b for a, b in edges if a == start or a in reached} - reached
            if not more:
                return reached
            reached |= more

    def edges_with(self, wait: Wait) -> set[tuple[str, str]]:
        """Return the graph as it would be with that request queued."""
        self.waits.append(wait)
        try:
            return self.edges()
        finally:
            self.waits.remove(wait)

    # --- Commands -------------------------------------------------------------------------

    def apply(self, command: Any, now: int, order: list[RequestKey]) -> Answer:
        """Apply a command. `order` says whom to let in first among those who may enter."""
        self.now = now
        self.ended = {}
        self.new_grants = []
        self._forget()
        answer = self._answer(command)
        self._settle(order)
        for name in set(self.limits) - self.lock_names():
            del self.limits[name]
        return answer

    def _answer(self, command: Any) -> Answer:
        match command:
            case Renew():
                return self._renew(command)
            case KeepAlive():
                return self._keep_alive(command)
            case Cancel():
                for wait in list(self.waits):
                    if wait.key == command.key and wait.attempt == command.attempt:
                        self._end_wait(wait, RefusalCode.CANCELLED)
                return ("done", 0, ())
            case Expire():
                return self._expire(command)
        known = self.memory.get(command.key)
        if known is not None:
            if known.digest != command.digest:
                return ("refused", RefusalCode.REQUEST_ID_REUSED)
            if known.answer != ("refused", RefusalCode.CANCELLED):
                return self._again(command, known)
        match command:
            case Acquire():
                return self._acquire(command)
            case Upgrade():
                return self._upgrade(command)
            case Downgrade():
                return self._downgrade(command)
            case Release():
                return self._release(command)
            case OpenSession():
                return self._open(command)
            case CloseSession():
                return self._close(command)
        raise AssertionError(command)

    def _again(self, command: Any, known: Memory) -> Answer:
        match known.state:
            case "waiting":
                wait = next(w for w in self.waits if w.key == command.key)
                wait.attempt += 1
                return ("waiting", wait.attempt)
            case "held":
                return self._still_granted(known)
            case "open":
                assert known.session is not None
                return ("opened", self.sessions[known.session][1], known.session)
            case _:
                if known.answer and known.answer[0] == "granted":  # a downgrade
                    if any(self.grant(*one) is None for one in known.grants):
                        return ("refused", RefusalCode.LOCK_LOST)
                    return self._still_granted(known)
                return known.answer

    def _still_granted(self, known: Memory) -> Answer:
        grants = [self.grant(*one) for one in known.grants]
        assert all(grants)
        held = [one for one in grants if one is not None]
        mode = S if any(one.mode is S for one in held) else X
        tokens = tuple((one.name, one.token) for one in held)
        return ("granted", held[0].owner, mode, tokens, min(self.deadline(one) for one in held))

    def _remember(self, command: Any, answer: Answer) -> Answer:
        self._over(command.key, command.digest, answer)
        return answer

    def _over(self, key: RequestKey, digest: bytes, answer: Answer, attempt: int = 0) -> None:
        if key in self.over:
            self.over.remove(key)
        self.memory[key] = Memory(digest, "over", answer, attempt=attempt, over_ms=self.now)
        self.over.append(key)
        if len(self.over) > limits.MAX_REQUESTS_REMEMBERED:
            del self.memory[self.over.pop(0)]

    def _forget(self) -> None:
        for key in list(self.over):
            if self.memory[key].over_ms <= self.now - limits.REQUEST_MEMORY_MS:
                self.over.remove(key)
                del self.memory[key]

    def _live(self, key: RequestKey, memory: Memory) -> None:
        if key in self.over:
            self.over.remove(key)
        self.memory[key] = memory

    def _attempt(self, key: RequestKey) -> int:
        known = self.memory.get(key)
        return 1 if known is None else known.attempt + 1

    def _acquire(self, c: Acquire) -> Answer:
        def refused(code: RefusalCode) -> Answer:
            return self._remember(c, ("refused", code))

        if c.session is not None:
            session = self.sessions.get(c.session)
            if session is None or session[1] <= self.now:
                return refused(RefusalCode.SESSION_NOT_FOUND)
        for name in c.names:
            fixes_limit = c.mode is S or c.limit is not None
            if fixes_limit and name in self.limits and self.limits[name] != c.limit:
                return refused(RefusalCode.LIMIT_MISMATCH)
        stakes = [
            name
            for name in c.names
            if c.owner in [h.owner for h in self.holders(name)]
            or c.owner in [w.owner for w in self.queue(name)]
        ]
        if stakes:
            return refused(RefusalCode.DEADLOCK if c.wait_ms else RefusalCode.LOCK_HELD)
        wait = Wait(
            c.key, c.digest, self._attempt(c.key), c.owner, c.mode, c.names,
            self.now + c.wait_ms, c.ttl_ms, c.session,
        )  # fmt: skip
        probe = self._with_limits(c)
        may_enter = probe.may_enter(wait)
        if not may_enter and not c.wait_ms:
            return refused(RefusalCode.LOCK_HELD)
        if len(self.lock_names() | set(c.names)) > limits.MAX_LOCKS:
            return ("refused", RefusalCode.TOO_MANY_LOCKS)
        if may_enter:
            if len(self.held) + len(c.names) > limits.MAX_GRANTS:
                return ("refused", RefusalCode.TOO_MANY_LOCKS)
            self.limits = probe.limits
            return self._enter(wait)
        if sum(len(w.names) for w in self.waits) + len(c.names) > limits.MAX_WAITERS or any(
            len(self.queue(name)) >= limits.MAX_WAITERS_PER_LOCK for name in c.names
        ):
            return ("refused", RefusalCode.TOO_MANY_WAITERS)
        edges = probe.edges_with(wait)
        if c.owner in self.reachable(edges, c.owner):
            self._remember(c, ("refused", RefusalCode.DEADLOCK))
            return ("deadlock", edges)
        self.limits = probe.limits
        self.waits.append(wait)
        self._live(c.key, Memory(c.digest, "waiting"))
        return ("waiting", wait.attempt)

    def _with_limits(self, c: Acquire) -> LockModel:
        fixed = dict(self.limits)
        if c.mode is S or c.limit is not None:
            fixed.update(dict.fromkeys(c.names, c.limit))
        return replace(self, limits=fixed)

    def _enter(self, wait: Wait) -> Answer:
        deadline = self.now + wait.ttl if wait.session is None else None
        grants = [
            Held(name, wait.owner, wait.mode, deadline, wait.session, wait.key)
            for name in wait.names
        ]
        self.held += grants
        self.new_grants += grants
        self._live(wait.key, Memory(wait.digest, "held"))
        return ("granted", wait.owner, wait.mode, None, self.deadline(grants[0]))

    def _upgrade(self, c: Upgrade) -> Answer:
        def refused(code: RefusalCode) -> Answer:
            return self._remember(c, ("refused", code))

        held = self.grant(c.name, c.owner, c.token)
        if held is None or held.mode is X or self.deadline(held) <= self.now:
            return refused(RefusalCode.NOT_HOLDER)
        alone = len(self.holders(c.name)) == 1
        if not alone and not c.wait_ms:
            return refused(RefusalCode.LOCK_HELD)
        wait = Wait(
            c.key, c.digest, self._attempt(c.key), c.owner, X, (c.name,),
            self.now + c.wait_ms, 0, None, c.token,
        )  # fmt: skip
        edges = self.edges_with(wait)
        second = any(w.token is not None for w in self.queue(c.name))
        if second or c.owner in self.reachable(edges, c.owner):
            self._remember(c, ("refused", RefusalCode.DEADLOCK))
            own_second = any(w.owner == c.owner for w in self.queue(c.name) if w.token is not None)
            return ("refused", RefusalCode.DEADLOCK) if own_second else ("deadlock", edges)
        if alone:
            return self._exchange(held, wait)
        if (
            sum(len(w.names) for w in self.waits) >= limits.MAX_WAITERS
            or len(self.queue(c.name)) >= limits.MAX_WAITERS_PER_LOCK
        ):
            return ("refused", RefusalCode.TOO_MANY_WAITERS)
        self.waits.append(wait)
        self._live(c.key, Memory(c.digest, "waiting"))
        return ("waiting", wait.attempt)

    def _exchange(self, held: Held, wait: Wait) -> Answer:
        self._lose(held)
        self.held.remove(held)
        new = replace(held, mode=X, key=wait.key, token=0)
        self.held.append(new)
        self.new_grants.append(new)
        self._live(wait.key, Memory(wait.digest, "held"))
        return ("granted", new.owner, X, None, self.deadline(new))

    def _downgrade(self, c: Downgrade) -> Answer:
        held = self.grant(c.name, c.owner, c.token)
        if held is None or held.mode is S:
            return self._remember(c, ("refused", RefusalCode.NOT_HOLDER))
        held.mode = S
        self.limits.setdefault(c.name, None)
        answer = ("granted", c.owner, S, ((c.name, c.token),), self.deadline(held))
        self._remember(c, answer)
        self.memory[c.key].grants = [(c.name, c.owner, c.token)]
        return answer

    def _release(self, c: Release) -> Answer:
        if c.force and c.owner == "" and c.token == 0:
            ending = self.holders(c.name)
        else:
            ending = [
                h
                for h in self.holders(c.name)
                if h.token == c.token and (c.force or h.owner == c.owner)
            ]
        if not ending:
            return self._remember(c, ("refused", RefusalCode.NOT_HOLDER))
        for held in ending:
            self._end_grant(held)
        return self._remember(c, ("done", 0, ()))

    def _renew(self, c: Renew) -> Answer:
        held = self.grant(c.name, c.owner, c.token)
        if held is None:
            return ("refused", RefusalCode.NOT_HOLDER)
        if held.session is None:
            held.deadline = self.now + c.ttl_ms
        return ("done", self.deadline(held), ())

    def _open(self, c: OpenSession) -> Answer:
        if c.session in self.sessions:
            return self._remember(c, ("refused", RefusalCode.SESSION_EXISTS))
        if len(self.sessions) >= limits.MAX_SESSIONS:
            return ("refused", RefusalCode.TOO_MANY_SESSIONS)
        self.sessions[c.session] = (c.ttl_ms, self.now + c.ttl_ms, c.key)
        self._live(c.key, Memory(c.digest, "open", session=c.session))
        return ("opened", self.now + c.ttl_ms, c.session)

    def _keep_alive(self, c: KeepAlive) -> Answer:
        missing = tuple(one for one in c.sessions if one not in self.sessions)
        deadlines = []
        for one in c.sessions:
            if one in self.sessions:
                ttl, _, key = self.sessions[one]
                self.sessions[one] = (ttl, self.now + ttl, key)
                deadlines.append(self.now + ttl)
        return ("done", min(deadlines, default=0), missing)

    def _close(self, c: CloseSession) -> Answer:
        if c.session not in self.sessions:
            return self._remember(c, ("refused", RefusalCode.SESSION_NOT_FOUND))
        self._end_session(c.session)
        return self._remember(c, ("done", 0, ()))

    def _expire(self, c: Expire) -> Answer:
        for grant in c.grants:
            held = self.grant(grant.name, grant.owner, grant.token)
            if held is not None and held.deadline == grant.deadline_ms <= self.now:
                self._end_grant(held)
        for session in c.sessions:
            known = self.sessions.get(session.session)
            if known is not None and known[1] == session.deadline_ms <= self.now:
                self._end_session(session.session)
        for item in c.waits:
            for wait in list(self.waits):
                if wait.key == item.key and wait.deadline == item.deadline_ms <= self.now:
                    self._end_wait(wait, RefusalCode.WAIT_TIMEOUT)
        return ("done", 0, ())

    # --- Endings --------------------------------------------------------------------------

    def _lose(self, held: Held) -> None:
        """The request of a grant that ends is lost, and with it its claim to its other grants."""
        key = held.key
        if key == NOBODY:
            return
        self._over(key, self.memory[key].digest, ("refused", RefusalCode.LOCK_LOST))
        for one in self.held:
            if one.key == key:
                one.key = NOBODY

    def _end_grant(self, held: Held) -> None:
        self._lose(held)
        self.held.remove(held)
        for wait in list(self.waits):
            if wait.token is not None and wait.token == held.token and wait.names == (held.name,):
                self._end_wait(wait, RefusalCode.LOCK_LOST)

    def _end_wait(self, wait: Wait, code: RefusalCode) -> None:
        self.waits.remove(wait)
        if wait.mode is S:
            for name in wait.names:
                others = [h.mode for h in self.holders(name)] + [w.mode for w in self.queue(name)]
                if S not in others:
                    self.limits.pop(name, None)
        answer = ("refused", code)
        self._over(wait.key, wait.digest, answer, wait.attempt)
        self.ended[wait.key] = (wait.attempt, answer)

    def _end_session(self, session: str) -> None:
        for wait in [w for w in self.waits if w.session == session]:
            self._end_wait(wait, RefusalCode.SESSION_NOT_FOUND)
        for held in [h for h in self.held if h.session == session]:
            self._end_grant(held)
        key = self.sessions.pop(session)[2]
        answer = ("refused", RefusalCode.SESSION_NOT_FOUND)
        self._over(key, self.memory[key].digest, answer)

    def _settle(self, order: list[RequestKey]) -> None:
        """Let in, one by one, whoever may enter; whose time is over leaves instead."""
        while True:
            may_enter = [w for w in self.waits if self.may_enter(w)]
            if not may_enter:
                return
            may_enter.sort(key=lambda w: order.index(w.key) if w.key in order else -1)
            wait = may_enter[0]
            code = self._overdue(wait)
            if code is not None:
                self._end_wait(wait, code)
                continue
            self.waits.remove(wait)
            if wait.token is None:
                answer = self._enter(wait)
            else:
                (held,) = self.holders(wait.names[0])
                answer = self._exchange(held, wait)
            self.ended[wait.key] = (wait.attempt, answer)

    def _overdue(self, wait: Wait) -> RefusalCode | None:
        if wait.token is not None:
            (held,) = self.holders(wait.names[0])
            if self.deadline(held) <= self.now:
                return RefusalCode.LOCK_LOST
        if wait.session is not None and self.sessions[wait.session][1] <= self.now:
            return RefusalCode.SESSION_NOT_FOUND
        return RefusalCode.WAIT_TIMEOUT if wait.deadline <= self.now else None

    def number(self, name: str, key: RequestKey, token: int) -> None:
        """Learn the token of a grant that was just made."""
        (held,) = [h for h in self.new_grants if h.name == name and h.key == key]
        assert held.token == 0
        held.token = token
        self.memory[key].grants.append((name, held.owner, token))
