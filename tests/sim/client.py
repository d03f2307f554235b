"""A simulated client: the retries, deadlines and mistakes of a real one.

A client is a script (a generator) on a clock of its own. It talks to any node over connections that
the network may lose, retries under the same request key through other nodes, and believes to hold
a lock until the send time of what was answered, plus ttl, minus the margin of the real client. What
it asked and was told becomes the history that is checked for linearizability.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from checker.history import NEVER_NS, Operation
from distsync_node.locks.commands import (
    Acquire,
    CloseSession,
    Done,
    Downgrade,
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
)
from distsync_node.replica.types import (
    AwaitApplied,
    ReadAt,
    Rejected,
    RejectReason,
    ReplicaEvent,
    Reply,
    Submit,
    SubmitRead,
)
from sim.host import FinalEffect, Host
from sim.kernel import US_PER_MS, DriftingClock
from sim.lock_checks import Hold

if TYPE_CHECKING:
    from sim.world import World

Script: TypeAlias = Generator[Any, Any, Any]

MARGIN_RATE = 0.01
MARGIN_MS = 50
NS_PER_US = 1_000
_UNPROPOSED = frozenset(
    {
        RejectReason.NOT_LEADER,
        RejectReason.OVERLOADED,
        RejectReason.DISK_FULL,
        RejectReason.UNINITIALISED,
        RejectReason.REMOVED,
        RejectReason.STOPPED,
    }
)


class Attempt:
    """One connection with one request on it, which may come late or never, but not twice."""

    __slots__ = (
        "abandoned",
        "client",
        "command",
        "effect",
        "has_arrived",
        "host",
        "incarnation",
        "read",
        "ref",
    )

    def __init__(self, client: Client, host: Host) -> None:
        self.client = client
        self.host = host
        self.incarnation = host.incarnation
        self.ref = 0
        self.effect: FinalEffect | None = None
        self.command: LockCommand | None = None
        self.read: Read | None = None
        self.abandoned = False
        self.has_arrived = False

    @property
    def is_over(self) -> bool:
        """Whether there is an answer."""
        return self.effect is not None


@dataclass(slots=True)
class Read:
    """A read under way: what it must see, and what it saw."""

    name: str
    known_index: int
    index: int = 0
    holders: list[dict[str, Any]] = field(default_factory=list)


class Grip:
    """What a client got from one acquire: tokens by lock, and what it believes."""

    def __init__(
        self, owner: str, outcome: Granted, ttl_ms: int, session: SessionId | None
    ) -> None:
        self.owner = owner
        self.tokens = {one.name: one.token for one in outcome.grants}
        self.shared = outcome.mode is LockMode.SHARED
        self.ttl_ms = ttl_ms
        self.session = session
        self.holds: dict[str, Hold] = {}


class Client:
    """A script runner with a clock, a belief about who leads, and a record of operations."""

    def __init__(self, world: World, name: str, clock: DriftingClock) -> None:
        self.name = name
        self.clock = clock
        self.world = world
        self.kernel = world.kernel
        self.rng = world.kernel.rng(f"client/{name}")
        self.idle = True
        self.finishing = False  # the chaos is over: every request must find its end
        self.leader: str | None = None
        self.operations = 0
        self._requests = 0
        self._owners = 0
        self._stack: Script | None = None
        self._waiting_for: Attempt | None = None
        self._turn = 0

    # --- Running a script ---------------------------------------------------------------------

    def start(self, script: Script) -> None:
        """Run a script to its end."""
        self.idle = False
        self._stack = script
        self._resume(self._turn, None)

    def _resume(self, turn: int, value: Any) -> None:
        if turn != self._turn or self._stack is None:
            return
        self._turn += 1
        self._waiting_for = None
        try:
            wanted = self._stack.send(value)
        except StopIteration:
            self._stack = None
            self.idle = True
            return
        match wanted:
            case int():
                self.kernel.after(wanted, self._resume, self._turn, None)
            case (Attempt() as attempt, int() as timeout_us):
                if attempt.is_over:
                    self.kernel.after(0, self._resume, self._turn, attempt.effect)
                else:
                    self._waiting_for = attempt
                    self.kernel.after(timeout_us, self._resume, self._turn, None)
            case other:
                raise TypeError(f"a script yields delays and attempts, not {other!r}")

    def answered(self, attempt: Attempt, effect: FinalEffect) -> None:
        """An answer arrived."""
        if attempt.abandoned or attempt.is_over:
            return
        attempt.effect = effect
        if self._waiting_for is attempt:
            self._resume(self._turn, effect)

    # --- One attempt --------------------------------------------------------------------------

    def open(self, host: Host, make_event: Callable[[int, int], ReplicaEvent]) -> Attempt:
        """Send a request to a host."""
        attempt = Attempt(self, host)
        self.world.network.send(self.name, host.name, self._arrive, attempt, make_event)
        return attempt

    def _arrive(self, attempt: Attempt, make_event: Callable[[int, int], ReplicaEvent]) -> None:
        if attempt.has_arrived:
            return
        attempt.has_arrived = True
        host = attempt.host
        if not host.alive:
            self.world.network.send(host.name, self.name, self.answered, attempt, _REFUSED)
            return

        def finish(effect: FinalEffect) -> None:
            self.world.answering(host, attempt, effect)
            self.world.network.send(host.name, self.name, self.answered, attempt, effect)

        def opened(ref: int) -> None:
            attempt.ref = ref
            if attempt.abandoned:
                self._hang_up(attempt)

        attempt.incarnation = host.incarnation
        host.call(make_event, finish, opened)

    def abandon(self, attempt: Attempt) -> None:
        """Close the connection; the node hears of it later, or never."""
        if not attempt.abandoned:
            attempt.abandoned = True
            if attempt.ref:
                self._hang_up(attempt)

    def _hang_up(self, attempt: Attempt) -> None:
        host = attempt.host
        self.world.network.send(
            self.name, host.name, host.disconnect, attempt.ref, attempt.incarnation
        )

    def pick_host(self) -> Host:
        """Choose whom to ask: the leader as far as known, else anybody."""
        hosts = self.world.serving_hosts()
        if self.leader is not None and self.rng.random() < 0.9:
            for host in hosts:
                if host.member_id == self.leader:
                    return host
        return self.rng.choice(hosts)

    # --- A command, retried -------------------------------------------------------------------

    def submit(self, command: LockCommand, *, patience_ms: int, wait_ms: int = 0) -> Script:
        """Run a command through whoever leads; returns (reply, send time of its attempt) or None.

        None is an unknown outcome, or a request that certainly was not taken (see `taken`).
        """
        kernel = self.kernel
        end_us = kernel.now_us + (patience_ms + wait_ms) * US_PER_MS
        self.taken = False
        overlapping: Attempt | None = None
        while True:
            host = self.pick_host()
            sent_us = kernel.now_us
            attempt = self.open(
                host, lambda now_ms, ref: Submit(now_ms=now_ms, ref=ref, command=command)
            )
            attempt.command = command
            timeout_ms = self.rng.choice((150, 400, 1_000)) + self.rng.choice((0, wait_ms))
            if overlapping is not None:
                kernel.after(self.rng.randint(0, 60_000), self.abandon, overlapping)
                overlapping = None
            effect = yield attempt, timeout_ms * US_PER_MS
            if isinstance(effect, Reply):
                self.leader = host.member_id
                return effect, sent_us
            self._learn(effect)
            if isinstance(effect, Rejected) and not self.finishing and self.rng.random() < 0.02:
                return None  # told that it was not done, or may have been, and content with that
            if effect is None:
                kernel.faults["client_timeout"] += 1
                if self.rng.random() < 0.5:
                    overlapping = attempt  # the next attempt attaches before this one is gone
                else:
                    self.abandon(attempt)
            if kernel.now_us >= end_us and not self.finishing:
                if overlapping is not None:
                    self.abandon(overlapping)
                return None
            yield self.rng.randint(1_000, 40_000)

    def _learn(self, effect: FinalEffect | None) -> None:
        if isinstance(effect, Rejected):
            if effect.reason not in _UNPROPOSED and effect is not _REFUSED:
                self.taken = True
            if effect.reason is RejectReason.LEADERSHIP_LOST:
                self.kernel.faults["leadership_lost_reply"] += 1
            self.leader = effect.leader
        else:
            self.taken = True
            self.leader = None

    def new_key(self) -> RequestKey:
        """Return a key for a new request."""
        self._requests += 1
        return RequestKey(self.name, f"r{self._requests}")

    def new_owner(self) -> str:
        """Return who asks: mostly a new owner, sometimes always the same one."""
        self._owners += 1
        return self.name if self.rng.random() < 0.3 else f"{self.name}/{self._owners}"

    # --- The record ---------------------------------------------------------------------------

    def note(
        self,
        names: Sequence[str],
        op: str,
        call_us: int,
        args: dict[str, Any],
        result: dict[str, Any] | None,
        tokens: dict[str, int] | None = None,
    ) -> None:
        """Put an operation on one or more locks into the history."""
        self.operations += 1
        for name in names:
            own = result
            if result is not None and tokens is not None:
                own = {**result, "token": tokens[name]}
            self.world.history.append(
                Operation(
                    client=self.name,
                    key=name,
                    op=op,
                    call_ns=call_us * NS_PER_US,
                    return_ns=NEVER_NS if result is None else self.kernel.now_us * NS_PER_US,
                    args=args,
                    result=own,
                )
            )
        self.kernel.trace(self.name, op, *names, result and result["status"], tokens)

    # --- Locks --------------------------------------------------------------------------------

    def acquire(
        self,
        names: tuple[str, ...],
        *,
        mode: LockMode = LockMode.EXCLUSIVE,
        ttl_ms: int,
        wait_ms: int = 0,
        limit: int | None = None,
        session: SessionId | None = None,
        owner: str | None = None,
        give_up_after_ms: int | None = None,
    ) -> Script:
        """Acquire locks; returns a Grip whose holds have begun, or None."""
        owner = owner or self.new_owner()
        command = Acquire(
            key=self.new_key(),
            digest=b"acquire_",
            names=names,
            owner=owner,
            mode=mode,
            ttl_ms=0 if session is not None else ttl_ms,
            wait_ms=wait_ms,
            limit=limit,
            session=session,
        )
        args = {
            "owner": owner,
            "mode": "shared" if mode is LockMode.SHARED else "exclusive",
            "ttl_ms": command.ttl_ms,
            "limit": limit,
            "queued": names[0].startswith("m"),
        }
        call_us = self.kernel.now_us
        if give_up_after_ms is not None:
            yield from self._disconnected(command, give_up_after_ms)
            self.note(names, "acquire", call_us, args, None)
            return None
        answer = yield from self.submit(
            command, patience_ms=self.rng.choice((500, 2_000, 5_000)), wait_ms=wait_ms
        )
        if answer is None:
            if self.taken:
                self.note(names, "acquire", call_us, args, None)
            return None
        reply, sent_us = answer
        outcome = reply.outcome
        if not isinstance(outcome, Granted):
            self.note(names, "acquire", call_us, args, status_of(outcome))
            return None
        result = {"status": "granted", "lease_ms": reply.remaining_ms}
        grip = Grip(owner, outcome, ttl_ms, session)
        self.note(names, "acquire", call_us, args, result, dict(grip.tokens))
        for name in names:
            grip.holds[name] = Hold(
                client=f"{self.name}:{owner}",
                name=name,
                token=grip.tokens[name],
                shared=grip.shared,
                limit=limit,
                until_us=0,
            )
        if session is None:
            self._believe(grip, call_us, ttl_ms)
        self._believe(grip, sent_us, reply.remaining_ms)
        if any(hold.until_us <= self.kernel.now_us for hold in grip.holds.values()):
            # A waited grant is renewed before anything is done under it.
            yield from self.renew(grip)
        return grip

    def _disconnected(self, command: LockCommand, after_ms: int) -> Script:
        attempt = self.open(
            self.pick_host(), lambda now_ms, ref: Submit(now_ms=now_ms, ref=ref, command=command)
        )
        attempt.command = command
        effect = yield attempt, after_ms * US_PER_MS
        if effect is None:
            self.kernel.faults["client_gone"] += 1
            self.abandon(attempt)
        else:
            self._learn(effect)

    def _believe(self, grip: Grip, sent_us: int, lease_ms: int) -> None:
        """Rely on the locks until the end of a lease counted from its sending, on this clock."""
        margin_ms = lease_ms * MARGIN_RATE + MARGIN_MS
        local_ms = self.clock.read_ms(sent_us) + int(lease_ms - margin_ms)
        until_us = self.clock.when_us(local_ms)
        if until_us <= self.kernel.now_us:
            return
        for hold in grip.holds.values():
            if hold.until_us < until_us:
                hold.until_us = until_us
                self.world.locks.hold(hold)

    def holds_all(self, grip: Grip) -> bool:
        """Whether this client still relies on every lock of a grip."""
        return all(hold.until_us > self.kernel.now_us for hold in grip.holds.values())

    def renew(self, grip: Grip) -> Script:
        """Renew a grip, by its session or lock by lock; returns whether all of it is held."""
        if grip.session is not None:
            return (yield from self.keep_alive(grip.session, [grip]))
        for name, token in grip.tokens.items():
            call_us = self.kernel.now_us
            args = {"owner": grip.owner, "token": token, "ttl_ms": grip.ttl_ms}
            command = Renew(
                name=name, owner=grip.owner, token=FencingToken(token), ttl_ms=grip.ttl_ms
            )
            answer = yield from self.submit(command, patience_ms=grip.ttl_ms)
            if answer is None:
                if self.taken:
                    self.note((name,), "renew", call_us, args, None)
                return False
            reply, sent_us = answer
            self.note((name,), "renew", call_us, args, status_of(reply.outcome))
            if isinstance(reply.outcome, Refused):
                self._lose(grip)
                return False
            part = Grip.__new__(Grip)
            part.holds = {name: grip.holds[name]}
            self._believe(part, sent_us, grip.ttl_ms)
        return self.holds_all(grip)

    def _lose(self, grip: Grip) -> None:
        for hold in grip.holds.values():
            self.world.locks.let_go(hold)

    def release(self, grip: Grip, name: str, *, token: int | None = None) -> Script:
        """Release one lock; with another token nothing may happen."""
        own = grip.tokens[name]
        if token is None:
            self.world.locks.let_go(grip.holds[name])
        args = {"owner": grip.owner, "token": own if token is None else token}
        command = Release(
            key=self.new_key(),
            digest=b"release_",
            name=name,
            owner=grip.owner,
            token=FencingToken(args["token"]),
        )
        call_us = self.kernel.now_us
        answer = yield from self.submit(command, patience_ms=self.rng.choice((300, 3_000)))
        if answer is None:
            if self.taken:
                self.note((name,), "release", call_us, args, None)
            return
        self.note((name,), "release", call_us, args, status_of(answer[0].outcome))

    def upgrade(self, grip: Grip, name: str, wait_ms: int) -> Script:
        """Exchange a shared grant for an exclusive one; returns whether that worked."""
        args = {"owner": grip.owner, "token": grip.tokens[name]}
        command = Upgrade(
            key=self.new_key(),
            digest=b"upgrade_",
            name=name,
            owner=grip.owner,
            token=FencingToken(grip.tokens[name]),
            wait_ms=wait_ms,
        )
        call_us = self.kernel.now_us
        answer = yield from self.submit(command, patience_ms=2_000, wait_ms=wait_ms)
        hold = grip.holds[name]
        if answer is None:
            # It may hold either of two tokens by now: rely on none.
            self.world.locks.let_go(hold)
            if self.taken:
                self.note((name,), "upgrade", call_us, args, None)
            return False
        reply, sent_us = answer
        if not isinstance(reply.outcome, Granted):
            self.note((name,), "upgrade", call_us, args, status_of(reply.outcome))
            return False
        grip.tokens[name] = reply.outcome.grants[0].token
        self.note((name,), "upgrade", call_us, args, {"status": "granted"}, dict(grip.tokens))
        self.world.locks.let_go(hold)
        grip.shared = False
        grip.holds[name] = Hold(
            client=hold.client,
            name=name,
            token=grip.tokens[name],
            shared=False,
            limit=None,
            until_us=0,
        )
        self._believe(grip, sent_us, reply.remaining_ms)
        return True

    def downgrade(self, grip: Grip, name: str) -> Script:
        """Turn an exclusive grant into a shared one."""
        args = {"owner": grip.owner, "token": grip.tokens[name]}
        command = Downgrade(
            key=self.new_key(),
            digest=b"downgrad",
            name=name,
            owner=grip.owner,
            token=FencingToken(grip.tokens[name]),
        )
        hold = grip.holds[name]
        shared = Hold(
            client=hold.client,
            name=name,
            token=hold.token,
            shared=True,
            limit=None,
            until_us=hold.until_us,
        )
        # From its sending on it may be shared, whatever the answer.
        self.world.locks.let_go(hold)
        grip.holds[name], grip.shared = shared, True
        if shared.until_us > self.kernel.now_us:
            self.world.locks.hold(shared)
        call_us = self.kernel.now_us
        answer = yield from self.submit(command, patience_ms=2_000)
        if answer is None:
            if self.taken:
                self.note((name,), "downgrade", call_us, args, None)
            return
        self.note((name,), "downgrade", call_us, args, status_of(answer[0].outcome))

    # --- Sessions -----------------------------------------------------------------------------

    def open_session(self, ttl_ms: int) -> Script:
        """Open a session; returns its id, or None."""
        key = self.new_key()
        session = SessionId(f"{self.name}-{key.request}")
        command = OpenSession(key=key, digest=b"session_", session=session, ttl_ms=ttl_ms)
        answer = yield from self.submit(command, patience_ms=2_000)
        if answer is None or not isinstance(answer[0].outcome, Done):
            return None
        return session

    def keep_alive(self, session: SessionId, grips: Sequence[Grip]) -> Script:
        """Renew a session; returns whether everything under it is held."""
        call_us = self.kernel.now_us
        answer = yield from self.submit(KeepAlive(sessions=(session,)), patience_ms=1_000)
        if answer is None:
            return False
        reply, sent_us = answer
        alive = isinstance(reply.outcome, Done) and session not in reply.outcome.missing
        for grip in grips:
            if not alive:
                self._lose(grip)
                continue
            for name, token in grip.tokens.items():
                args = {"owner": grip.owner, "token": token, "ttl_ms": reply.remaining_ms}
                # From its last sending on: an earlier attempt promised less.
                self.note((name,), "touch", max(call_us, sent_us), args, {"status": "ok"})
            self._believe(grip, sent_us, reply.remaining_ms)
        return alive and all(self.holds_all(grip) for grip in grips)

    def close_session(self, session: SessionId, grips: Sequence[Grip]) -> Script:
        """Close a session and with it everything held under it."""
        for grip in grips:
            self._lose(grip)
        command = CloseSession(key=self.new_key(), digest=b"close___", session=session)
        call_us = self.kernel.now_us
        answer = yield from self.submit(command, patience_ms=1_000)
        for grip in grips:
            for name, token in grip.tokens.items():
                # Whether the session had ended before is not told, so this says "at some time".
                args = {"owner": grip.owner, "token": token}
                if answer is not None or self.taken:
                    self.note((name,), "release", call_us, args, None)

    # --- Reads --------------------------------------------------------------------------------

    def read(self, name: str) -> Script:
        """Look at a lock on any node, linearizably."""
        world = self.world
        call_us = self.kernel.now_us
        known_index = world.raft.last_index
        leader = self.pick_host()
        attempt = self.open(leader, lambda now_ms, ref: SubmitRead(now_ms=now_ms, ref=ref))
        attempt.read = read = Read(name, known_index)
        effect = yield attempt, 500 * US_PER_MS
        if not isinstance(effect, ReadAt):
            self._learn(effect)
            self.abandon(attempt)
            return
        if self.rng.random() < 0.4:
            # The confirmed index may be waited for, and the lock read, on another node.
            attempt = self.open(
                self.rng.choice(world.serving_hosts()),
                lambda now_ms, ref: AwaitApplied(now_ms=now_ms, ref=ref, index=read.index),
            )
            attempt.read = Read(name, known_index)
            effect = yield attempt, 800 * US_PER_MS
            if not isinstance(effect, ReadAt):
                self.abandon(attempt)
                return
        result = {"status": "ok", "holders": attempt.read.holders}
        self.note((name,), "read", call_us, {}, result)


def status_of(outcome: Outcome) -> dict[str, Any]:
    """Return the result of the history for an outcome that is not a grant."""
    match outcome:
        case Refused():
            return {"status": RefusalCode(outcome.code).name.lower()}
        case Done() | Granted():
            return {"status": "ok"}
        case _:
            raise TypeError(f"not a final outcome: {outcome}")


_REFUSED = Rejected(ref=0, reason=RejectReason.NOT_LEADER, leader=None)
