"""What must hold of the locks at every instant: of the state, and of the clients' beliefs.

Of the committed state, after each entry:

    state.diverged          two members have different state hashes at one index
    time.went_back          a stamp of leader time below one before it
    time.too_fast           leader time ran ahead of true time by more than drift: leases end early
    time.too_slow           leader time fell behind while one member led: leases live too long
    lock.exclusion          exclusive beside another holder, or more holders than the limit
    lock.token_order        a grant whose token is not above every token before
    lock.vanished           a grant ended that nobody released and whose lease had not ended
    lock.orphan             a grant of a session that does not exist
    lock.double_grant       one request got two tokens for one lock
    lock.late_grant         a waiter got in after its wait or its session had ended
    lock.overtaken          a later request got in before an exclusive one that waits

Of what clients are told and believe:

    client.exclusion        two clients hold a lock in conflict, each before its own deadline
    client.retry_token      a retried acquire answered another token than before
    client.dead_grant       a grant was answered that had ended in an earlier entry
    client.lost_while_held  `lock_lost` was answered while the grant is held
    client.unreleased       a release was acknowledged and the grant is still there
    client.cancelled        a wait whose client is still there was cancelled
    client.early_end        a grant ended by expiry while its client could still rely on it
    client.stale_read       a read misses an entry that was applied before the read began
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from distsync_node.locks.commands import (
    CloseSession,
    Expire,
    KeepAlive,
    LockMode,
    Release,
    RequestKey,
    SessionId,
)
from distsync_node.locks.machine import LockMachine
from distsync_node.locks.records import HeldGrant, WaitingRequest
from distsync_node.raft.types import Entry, EntryKind
from distsync_node.replica.types import ReplicatedCommand
from sim.kernel import US_PER_MS, Kernel, Violation

if TYPE_CHECKING:
    from sim.host import Host
    from sim.raft_checks import RaftChecks

MAX_DRIFT = 0.0101
NO_PLACE = 1 << 62  # of a request that did not wait
_decode_commands = msgspec.msgpack.Decoder(list[ReplicatedCommand]).decode


@dataclass(slots=True, kw_only=True)
class Hold:
    """What one client believes to hold, until a true time that follows from its own clock."""

    client: str
    name: str
    token: int
    shared: bool
    limit: int | None
    until_us: int


@dataclass(frozen=True, slots=True)
class _Picture:
    """The state as one entry left it; grants by (name, token), the rest by name or id."""

    grants: dict[tuple[str, int], HeldGrant]
    waiting: dict[str, list[WaitingRequest]]
    limits: dict[str, int]
    sessions: dict[SessionId, int]  # deadlines


def _picture(machine: LockMachine) -> _Picture:
    state = machine._state
    grants: dict[tuple[str, int], HeldGrant] = {}
    waiting: dict[str, list[WaitingRequest]] = {}
    limits: dict[str, int] = {}
    for name, lock in state.locks.items():
        for grant in lock.holders():
            grants[name, grant.token] = grant
        if lock.queue is not None:
            waiting[name] = list(lock.queue.values())
        if lock.limit > 0:
            limits[name] = lock.limit
    sessions = {one: session.lease.deadline_ms for one, session in state.sessions.items()}
    return _Picture(grants, waiting, limits, sessions)


class LockChecks:
    """The committed state, as one sees it who is told of every entry once, and clients' holds."""

    def __init__(self, kernel: Kernel, raft: RaftChecks) -> None:
        self._kernel = kernel
        self._raft = raft
        self._now = _Picture({}, {}, {}, {})
        self._hashes: dict[int, int] = {}
        self._newest_token = 0
        self._tokens_of: dict[tuple[RequestKey, str], int] = {}
        self._ended_at: dict[tuple[str, int], int] = {}  # (name, token) -> index of the entry
        self._holds: defaultdict[str, list[Hold]] = defaultdict(list)
        self._answered: dict[RequestKey, Any] = {}
        self._last_stamp_ms = 0
        self._ahead_us = float("inf")  # lowest (stamp - true time) so far, drift allowed for
        self._behind: tuple[int, int, int] | None = None  # (term, stamp, proposed)

    # --- Time ---------------------------------------------------------------------------------

    def _check_time(self, host: Host, entry: Entry) -> None:
        stamp_ms = entry.stamp_ms
        if stamp_ms < self._last_stamp_ms:
            self._fail("time.went_back", host, f"{stamp_ms} after {self._last_stamp_ms}")
        self._last_stamp_ms = stamp_ms
        proposed_us = self._raft.proposed_us.get((entry.index, entry.term))
        if proposed_us is None or entry.kind is EntryKind.NOOP:
            return  # a no-op repeats the stamp before it
        stamp_us = stamp_ms * US_PER_MS
        slack_us = (5 + len(self._raft.leaders)) * US_PER_MS  # a rounded millisecond a leader
        ahead_us = stamp_us - proposed_us * (1 + MAX_DRIFT)
        if ahead_us > self._ahead_us + slack_us:
            by_ms = (ahead_us - self._ahead_us) / US_PER_MS
            self._fail("time.too_fast", host, f"by {by_ms:.1f} ms at entry {entry.index}")
        self._ahead_us = min(self._ahead_us, ahead_us)
        if self._behind is None or self._behind[0] != entry.term:
            self._behind = (entry.term, stamp_us, proposed_us)
        _, first_stamp_us, first_us = self._behind
        missing_us = (proposed_us - first_us) * (1 - MAX_DRIFT) - (stamp_us - first_stamp_us)
        if missing_us > 5 * US_PER_MS:
            by_ms = missing_us / US_PER_MS
            self._fail("time.too_slow", host, f"by {by_ms:.1f} ms at entry {entry.index}")

    # --- The committed state ------------------------------------------------------------------

    def applied(self, host: Host, entry: Entry, *, first: bool) -> None:
        """Judge the state of a member after an entry."""
        machine = host.replica.machine
        self._check_hash(host, entry.index, machine)
        if not first:
            return
        self._check_time(host, entry)
        if entry.kind is not EntryKind.COMMANDS or len(entry.payload) < 2:
            return
        before, after = self._now, _picture(machine)
        self._now = after
        self._check_exclusion(host, after)
        self._check_sessions(host, after)
        ended = [before.grants[key] for key in sorted(before.grants.keys() - after.grants.keys())]
        new = [after.grants[key] for key in sorted(after.grants.keys() - before.grants.keys())]
        if ended:
            self._check_ended(host, entry, before, ended, new)
        if new:
            self._check_granted(host, entry, before, after, new)

    def _check_hash(self, host: Host, index: int, machine: LockMachine) -> None:
        state_hash = machine.state_hash()
        known = self._hashes.setdefault(index, state_hash)
        if known != state_hash:
            self._fail("state.diverged", host, f"at index {index}")

    def restored(self, host: Host, index: int) -> None:
        """Judge the state of a member after it took a snapshot."""
        self._check_hash(host, index, host.replica.machine)

    def _check_exclusion(self, host: Host, after: _Picture) -> None:
        holders: defaultdict[str, list[HeldGrant]] = defaultdict(list)
        for (name, _), grant in after.grants.items():
            holders[name].append(grant)
        for name, grants in holders.items():
            exclusive = any(grant.mode is LockMode.EXCLUSIVE for grant in grants)
            limit = 1 if exclusive else after.limits.get(name)
            if limit is not None and len(grants) > limit:
                self._fail("lock.exclusion", host, f"{name}: {grants}")

    def _check_sessions(self, host: Host, after: _Picture) -> None:
        for grant in after.grants.values():
            if grant.session is not None and grant.session not in after.sessions:
                self._fail("lock.orphan", host, str(grant))

    def _check_ended(
        self,
        host: Host,
        entry: Entry,
        before: _Picture,
        ended: list[HeldGrant],
        new: list[HeldGrant],
    ) -> None:
        commands = _decode_commands(entry.payload)
        exchanged = {(grant.name, grant.owner) for grant in new}
        for grant in ended:
            self._ended_at[grant.name, grant.token] = entry.index
            given_up = any(_gives_up(command, grant) for command in commands)
            if given_up or (grant.name, grant.owner) in exchanged:
                continue
            deadline_ms = grant.deadline_ms
            if grant.session is not None:
                deadline_ms = before.sessions[grant.session]
            named = any(isinstance(one, Expire) and _expires(one, grant) for one in commands)
            if not named or deadline_ms > entry.stamp_ms:
                self._fail("lock.vanished", host, f"{grant} at {entry.stamp_ms} by {commands}")
            self._check_not_relied_upon(host, grant)

    def _check_not_relied_upon(self, host: Host, grant: HeldGrant) -> None:
        for hold in self._holds[grant.name]:
            if hold.token == grant.token and hold.until_us > self._kernel.now_us:
                left_ms = (hold.until_us - self._kernel.now_us) / US_PER_MS
                self._fail("client.early_end", host, f"{left_ms:.1f} ms early: {grant}")

    def _check_granted(
        self, host: Host, entry: Entry, before: _Picture, after: _Picture, new: list[HeldGrant]
    ) -> None:
        waited = {
            (name, request.key): request
            for name, queue in before.waiting.items()
            for request in queue
        }
        held_before = {(grant.name, grant.owner) for grant in before.grants.values()}
        for grant in sorted(new, key=lambda one: one.token):
            if grant.token <= self._newest_token:
                self._fail("lock.token_order", host, f"{grant} after {self._newest_token}")
            self._newest_token = grant.token
            if grant.key is None:
                continue
            first = self._tokens_of.setdefault((grant.key, grant.name), grant.token)
            if first != grant.token:
                self._fail("lock.double_grant", host, f"{grant} beside token {first}")
            request = waited.get((grant.name, grant.key))
            if request is not None and self._is_over(before, request, entry):
                self._fail("lock.late_grant", host, f"{request} at {entry.stamp_ms}")
            if (grant.name, grant.owner) not in held_before:  # an upgrade stands at the head
                self._check_overtaken(host, before, after, grant, request)

    def _is_over(self, before: _Picture, request: WaitingRequest, entry: Entry) -> bool:
        session = request.session
        if request.deadline_ms <= entry.stamp_ms or session is None:
            return request.deadline_ms <= entry.stamp_ms
        commands = _decode_commands(entry.payload)
        kept = any(isinstance(one, KeepAlive) and session in one.sessions for one in commands)
        return not kept and before.sessions[session] <= entry.stamp_ms

    def _check_overtaken(
        self,
        host: Host,
        before: _Picture,
        after: _Picture,
        grant: HeldGrant,
        request: WaitingRequest | None,
    ) -> None:
        place = NO_PLACE if request is None else request.sequence
        stayed = {one.sequence for one in before.waiting.get(grant.name, ())}
        for other in after.waiting.get(grant.name, ()):
            waits_longer = other.sequence in stayed and other.sequence < place
            if other.mode is LockMode.EXCLUSIVE and waits_longer:
                self._fail("lock.overtaken", host, f"{grant} passed {other}")

    # --- What clients are told ----------------------------------------------------------------

    def granted(self, host: Host, key: RequestKey, outcome: Any, applied_before: int) -> None:
        """Judge a grant that is answered; entries up to `applied_before` were known before."""
        tokens = tuple((one.name, one.token) for one in outcome.grants)
        first = self._answered.setdefault(key, tokens)
        if first != tokens:
            self._fail("client.retry_token", host, f"{key}: {tokens} after {first}")
        for name, token in tokens:
            if self._ended_at.get((name, token), 1 << 60) <= applied_before:
                self._fail("client.dead_grant", host, f"{key}: {name} {token}")

    def lost(self, host: Host, key: RequestKey) -> None:
        """Judge an answer that the grant of a request has ended."""
        machine = host.replica.machine
        for name, lock in machine._state.locks.items():
            for grant in lock.holders():
                if grant.key == key:
                    self._fail("client.lost_while_held", host, f"{name}: {grant}")

    def released(self, host: Host, name: str, token: int) -> None:
        """Judge an acknowledged release."""
        lock = host.replica.machine._state.locks.get(name)
        if lock is not None and any(grant.token == token for grant in lock.holders()):
            self._fail("client.unreleased", host, f"{name} {token}")

    def read(self, host: Host, known_index: int) -> None:
        """Judge a read that began when `known_index` was applied somewhere."""
        raft = host.replica.raft
        if raft is None or raft.applied_index < known_index:
            have = None if raft is None else raft.applied_index
            self._fail("client.stale_read", host, f"serves {have}, {known_index} was known")

    # --- What clients believe -----------------------------------------------------------------

    def hold(self, hold: Hold) -> None:
        """A client relies on a grant from now until `until_us`, or for longer than before."""
        now_us = self._kernel.now_us
        others = [other for other in self._holds[hold.name] if other.until_us > now_us]
        if not any(other is hold for other in others):
            others.append(hold)
        self._holds[hold.name] = others
        if len(others) > 1:
            limits = [other.limit for other in others if other.limit is not None]
            limit = min(limits) if limits else len(others)
            if not all(other.shared for other in others) or len(others) > limit:
                raise Violation("client.exclusion", f"{hold.name}: {others} at {now_us}")

    def let_go(self, hold: Hold) -> None:
        """A client no longer relies on a grant."""
        hold.until_us = min(hold.until_us, self._kernel.now_us)

    def _fail(self, check: str, host: Host, detail: str) -> None:
        raise Violation(check, f"{host.name} ({host.member_id}): {detail}")


def _gives_up(command: ReplicatedCommand, grant: HeldGrant) -> bool:
    """Whether a command ends that very grant on purpose."""
    match command:
        case Release():
            named = command.owner == grant.owner and command.token == grant.token
            return command.name == grant.name and (named or command.force)
        case CloseSession():
            return grant.session == command.session
        case _:
            return False


def _expires(command: Expire, grant: HeldGrant) -> bool:
    """Whether an expiry names that grant, or its session."""
    return any((one.name, one.token) == (grant.name, grant.token) for one in command.grants) or (
        grant.session is not None and any(one.session == grant.session for one in command.sessions)
    )
