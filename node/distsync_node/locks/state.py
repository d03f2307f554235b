"""The tables of the lock state machine and the mutations that keep them in step.

What is state (hashed, in snapshots) are the items of `records.py` and three counters; every other
table here is an index over them. The functions that decide (`acquiring.py`, `ending.py`,
`granting.py`) change state only through the methods of `LockState`, so index, hash and list of
changes cannot be forgotten in one place.

Memory of requests. A request that waits, holds or keeps a session open is remembered for as long
as it does. After that its end is remembered for REQUEST_MEMORY_MS of leader time, and at most
MAX_REQUESTS_REMEMBERED ends are kept, the oldest are forgotten first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import msgspec

from distsync_node.errors import InvariantViolation
from distsync_node.locks import limits
from distsync_node.locks.commands import (
    Done,
    FencingToken,
    Granted,
    Notice,
    Refused,
    RequestKey,
    SessionId,
)
from distsync_node.locks.deadlines import GONE, DeadlineHeap
from distsync_node.locks.hashing import StateHash
from distsync_node.locks.lock import LIMIT_UNSET, Lock
from distsync_node.locks.records import (
    Counters,
    FinishedRequest,
    HeldGrant,
    LockLimit,
    RequestRecord,
    SessionLease,
    WaitingRequest,
)

SUPERSEDED_SLACK = 64


class Session(msgspec.Struct, gc=False, eq=False):
    """An open session with what depends on it."""

    lease: SessionLease
    grants: dict[FencingToken, HeldGrant] = {}
    waits: dict[int, WaitingRequest] = {}


class LockState:
    """All tables. The clock is `stamp_ms`, the leader time of the entry being applied."""

    __slots__ = (
        "changes",
        "finished",
        "finished_count",
        "grant_count",
        "grant_deadlines",
        "hash",
        "locks",
        "names_of",
        "notices",
        "place_count",
        "requests",
        "sequence",
        "session_deadlines",
        "sessions",
        "stamp_ms",
        "token",
        "touched",
        "wait_deadlines",
        "waits_of",
    )

    def __init__(self) -> None:
        self.stamp_ms = 0
        self.token = 0
        self.sequence = 0
        self.locks: dict[str, Lock] = {}
        self.sessions: dict[SessionId, Session] = {}
        self.requests: dict[RequestKey, RequestRecord] = {}
        self.finished: deque[FinishedRequest] = deque()  # superseded ones stay until they come up
        self.finished_count = 0
        # Locks held by an owner: one name (the usual case) or several.
        self.names_of: dict[str, str | dict[str, None]] = {}
        self.waits_of: dict[str, dict[int, WaitingRequest]] = {}
        self.grant_count = 0
        self.place_count = 0
        self.hash = StateHash()
        self.notices: list[Notice] = []
        self.changes: dict[str, None] = {}
        self.touched: dict[str, None] = {}  # locks in which somebody may have become unblocked
        self.grant_deadlines: DeadlineHeap[HeldGrant] = DeadlineHeap(
            current=self._grant_deadline, identity=lambda grant: grant.token
        )
        self.session_deadlines: DeadlineHeap[SessionLease] = DeadlineHeap(
            current=self._session_deadline, identity=lambda lease: lease.id
        )
        self.wait_deadlines: DeadlineHeap[WaitingRequest] = DeadlineHeap(
            current=self._wait_deadline, identity=lambda request: request.sequence
        )

    # --- Counters -------------------------------------------------------------------------

    def counters(self) -> Counters:
        """Return the counters as an item."""
        return Counters(self.token, self.sequence, self.stamp_ms)

    def next_token(self) -> FencingToken:
        """Return the next fencing token."""
        if self.token >= limits.MAX_TOKEN:
            raise InvariantViolation(f"fencing tokens are used up at {self.token}")
        self.token += 1
        return FencingToken(self.token)

    def next_sequence(self) -> int:
        """Return the next number in the order of waiting and finishing."""
        self.sequence += 1
        return self.sequence

    # --- Deadlines now in force -----------------------------------------------------------

    def _grant_deadline(self, grant: HeldGrant) -> int:
        current = self.find_grant(grant.name, grant.owner, grant.token)
        return GONE if current is None else current.deadline_ms

    def _session_deadline(self, lease: SessionLease) -> int:
        session = self.sessions.get(lease.id)
        return GONE if session is None else session.lease.deadline_ms

    def _wait_deadline(self, request: WaitingRequest) -> int:
        return GONE if self.find_waiting(request) is None else request.deadline_ms

    def lease_deadline_ms(self, grant: HeldGrant) -> int:
        """Return when the grant ends: its own deadline or that of its session."""
        if grant.session is None:
            return grant.deadline_ms
        return self.sessions[grant.session].lease.deadline_ms

    # --- Grants ---------------------------------------------------------------------------

    def find_grant(self, name: str, owner: str, token: FencingToken) -> HeldGrant | None:
        """Return the grant of that owner under that token, if it is current."""
        lock = self.locks.get(name)
        grant = None if lock is None else lock.grant_of(owner)
        return grant if grant is not None and grant.token == token else None

    def names_held(self, owner: str) -> Iterator[str]:
        """Yield the names of the locks an owner holds."""
        held = self.names_of.get(owner)
        if isinstance(held, str):
            yield held
        elif held is not None:
            yield from held

    def add_grant(self, lock: Lock, grant: HeldGrant) -> None:
        """Enter a new grant; its request is recorded by the caller."""
        lock.put(grant)
        self.grant_count += 1
        name, owner = grant.name, grant.owner
        held = self.names_of.setdefault(owner, name)
        if isinstance(held, dict):
            held[name] = None
        elif held is not name:
            self.names_of[owner] = {held: None, name: None}
        if grant.session is None:
            self.grant_deadlines.push(grant.deadline_ms, grant)
        else:
            self.sessions[grant.session].grants[grant.token] = grant
        self.hash.add(grant)
        self.changes[name] = None

    def replace_grant(self, lock: Lock, old: HeldGrant, new: HeldGrant) -> None:
        """Put `new` in the place of `old`: same owner, same token."""
        if old.mode is not new.mode:
            lock.take_out(old)
        lock.put(new)
        if new.session is not None:
            self.sessions[new.session].grants[new.token] = new
        elif new.deadline_ms < old.deadline_ms:
            self.grant_deadlines.push(new.deadline_ms, new)
        self.hash.remove(old)
        self.hash.add(new)

    def remove_grant(self, lock: Lock, grant: HeldGrant) -> None:
        """Remove a grant; what becomes of its request, and of an idle lock, is the caller's."""
        lock.take_out(grant)
        self.grant_count -= 1
        name, owner = grant.name, grant.owner
        held = self.names_of[owner]
        if isinstance(held, str) or len(held) == 1:
            del self.names_of[owner]
        else:
            del held[name]
        if grant.session is not None:
            del self.sessions[grant.session].grants[grant.token]
        self.hash.remove(grant)
        self.changes[name] = None
        if lock.is_waited_for:
            self.touched[name] = None

    # --- Locks ----------------------------------------------------------------------------

    def lock_for(self, name: str) -> Lock:
        """Return the lock of that name, which need not exist yet."""
        lock = self.locks.get(name)
        if lock is None:
            lock = self.locks[name] = Lock(name)
        return lock

    def fix_limit(self, lock: Lock, limit: int) -> None:
        """Fix the limit of a lock for as long as it exists."""
        if lock.limit == LIMIT_UNSET:
            lock.limit = limit
            self.hash.add(LockLimit(lock.name, limit))

    def free_limit(self, lock: Lock) -> None:
        """Let the next shared request fix the limit, if no shared one holds or waits."""
        if lock.limit != LIMIT_UNSET and not lock.has_shared:
            self.hash.remove(LockLimit(lock.name, lock.limit))
            lock.limit = LIMIT_UNSET

    def drop_if_idle(self, lock: Lock) -> None:
        """Forget a lock that nobody holds or waits for."""
        if lock.exclusive is None and lock.shared is None and lock.queue is None:
            del self.locks[lock.name]
            if lock.limit != LIMIT_UNSET:
                self.hash.remove(LockLimit(lock.name, lock.limit))

    # --- Waiting requests -----------------------------------------------------------------

    def find_waiting(self, request: WaitingRequest) -> WaitingRequest | None:
        """Return the request with its present attempt if it still waits."""
        record = self.requests.get(request.key)
        if isinstance(record, WaitingRequest) and record.sequence == request.sequence:
            return record
        return None

    def next_attempt(self, key: RequestKey) -> int:
        """Return the attempt number of a request that is about to wait."""
        record = self.requests.get(key)
        return record.attempt + 1 if isinstance(record, FinishedRequest) else 1

    def add_waiting(self, request: WaitingRequest) -> None:
        """Queue a request in all its locks."""
        for name in request.names:
            self.lock_for(name).enqueue(request)
            self.changes[name] = None
        self.place_count += len(request.names)
        self.waits_of.setdefault(request.owner, {})[request.sequence] = request
        if request.session is not None:
            self.sessions[request.session].waits[request.sequence] = request
        self.record(request.key, request)
        self.wait_deadlines.push(request.deadline_ms, request)  # after the record: it looks there
        self.hash.add(request)

    def count_attach(self, request: WaitingRequest) -> int:
        """Note another attach of a waiting request and return its number."""
        attempt = request.attempt + 1
        attached = msgspec.structs.replace(request, attempt=attempt)
        self.requests[request.key] = attached
        self.hash.remove(request)
        self.hash.add(attached)
        return attempt

    def remove_waiting(self, request: WaitingRequest) -> WaitingRequest:
        """Take a request out of all queues and return it with its present attempt.

        Its record is left to the caller, who knows what became of it.
        """
        current = self.find_waiting(request)
        if current is None:
            raise InvariantViolation(f"request {request.key} is not waiting")
        for name in request.names:
            self.locks[name].dequeue(request)
            self.touched[name] = None
            self.changes[name] = None
        self.place_count -= len(request.names)
        waits = self.waits_of[request.owner]
        del waits[request.sequence]
        if not waits:
            del self.waits_of[request.owner]
        if request.session is not None:
            del self.sessions[request.session].waits[request.sequence]
        self.hash.remove(current)
        return current

    # --- Sessions -------------------------------------------------------------------------

    def add_session(self, lease: SessionLease) -> None:
        """Open a session."""
        self.sessions[lease.id] = Session(lease)
        self.record(lease.key, lease)
        self.session_deadlines.push(lease.deadline_ms, lease)
        self.hash.add(lease)

    def renew_session(self, session: Session) -> int:
        """Set a session's deadline from the stamp and return it. It never becomes earlier."""
        old = session.lease
        session.lease = msgspec.structs.replace(old, deadline_ms=self.stamp_ms + old.ttl_ms)
        self.hash.remove(old)
        self.hash.add(session.lease)
        return session.lease.deadline_ms

    def remove_session(self, session: Session) -> None:
        """Forget a session that has neither grants nor waits left."""
        del self.sessions[session.lease.id]
        self.hash.remove(session.lease)

    # --- Requests -------------------------------------------------------------------------

    def record(self, key: RequestKey, record: RequestRecord) -> None:
        """Set what the table holds under a key."""
        old = self.requests.get(key)
        if isinstance(old, FinishedRequest):
            self.finished_count -= 1
            self.hash.remove(old)
            self.requests[key] = record
            self._drop_superseded()
        else:
            self.requests[key] = record

    def _drop_superseded(self) -> None:
        if len(self.finished) > 2 * self.finished_count + SUPERSEDED_SLACK:
            self.finished = deque(e for e in self.finished if self.requests.get(e.key) is e)

    def finish(
        self,
        key: RequestKey,
        digest: bytes,
        outcome: Granted | Done | Refused,
        attempt: int = 0,
    ) -> None:
        """Remember the end of a request."""
        sequence = self.next_sequence()
        end = FinishedRequest(key, digest, sequence, self.stamp_ms, outcome, attempt)
        self.record(key, end)
        self.finished.append(end)
        self.finished_count += 1
        self.hash.add(end)
        if self.finished_count > limits.MAX_REQUESTS_REMEMBERED:
            self.forget_before(-1)

    def restore_finished(self, end: FinishedRequest) -> None:
        """Enter an end from a snapshot; they come in the order of their sequence."""
        self.requests[end.key] = end
        self.finished.append(end)
        self.finished_count += 1
        self.hash.add(end)

    def forget_before(self, stamp_ms: int) -> None:
        """Forget the ends of requests from before that time, and those beyond the limit."""
        finished = self.finished
        while finished:
            end = finished[0]
            if self.requests.get(end.key) is end:
                is_over = self.finished_count > limits.MAX_REQUESTS_REMEMBERED
                if end.finished_ms > stamp_ms and not is_over:
                    return
                del self.requests[end.key]
                self.finished_count -= 1
                self.hash.remove(end)
            finished.popleft()
