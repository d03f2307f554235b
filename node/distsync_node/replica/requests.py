"""Who waits for what: the connections behind commands, waits and reads.

A connection is a `ref`. Invariants: a ref is in at most one place (submitted, in an entry, parked,
reading); it gets exactly one final effect unless its client disconnected, and none after that.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from distsync_node.locks.commands import Acquire, KeepAlive, RequestKey, SessionId
from distsync_node.raft.types import LogIndex, Term
from distsync_node.replica.types import ReplicatedCommand

NO_REF = 0
MAX_COMMANDS_PER_ENTRY = 512
COMMAND_BYTES = 256  # rough size of an encoded command with one name


@dataclass(slots=True, kw_only=True)
class Batch:
    """The commands of one entry and the connection behind each (NO_REF for none).

    `keepalives` maps each session of the batch's KeepAlive to the connections that renew it.
    """

    commands: list[ReplicatedCommand]
    refs: list[int]
    keepalives: dict[SessionId, list[int]]
    expires: bool
    term: Term | None = None  # once it is in the log

    def all_refs(self) -> list[int]:
        """Every connection of the batch."""
        refs = [ref for ref in self.refs if ref]
        for session_refs in self.keepalives.values():
            refs.extend(session_refs)
        return refs


def _weight_bytes(command: ReplicatedCommand) -> int:
    names = len(command.names) if isinstance(command, Acquire) else 1
    return COMMAND_BYTES * names


class Requests:
    """The bookkeeping of one replica's waiting connections."""

    __slots__ = (
        "_attempts",
        "_keepalives",
        "_parked",
        "_reads",
        "_sequence",
        "_submitted",
        "_waiting",
        "abandoned",
        "batches",
    )

    def __init__(self) -> None:
        self.batches: dict[LogIndex, Batch] = {}
        self.abandoned: set[int] = set()
        self._submitted: list[tuple[int, ReplicatedCommand]] = []
        self._keepalives: dict[SessionId, list[int]] = {}
        self._parked: dict[int, RequestKey] = {}
        self._waiting: dict[RequestKey, list[int]] = {}
        self._attempts: dict[RequestKey, int] = {}  # the highest of each request that waits here
        self._reads: list[tuple[LogIndex, int, int]] = []
        self._sequence = 0

    @property
    def count(self) -> int:
        """Requests that wait to be proposed or wait in a queue."""
        return len(self._submitted) + len(self._parked)

    @property
    def submitted_count(self) -> int:
        """Requests that wait to be proposed."""
        return len(self._submitted)

    @property
    def has_submitted(self) -> bool:
        """Something waits to be proposed."""
        return bool(self._submitted or self._keepalives)

    def submit(self, ref: int, command: ReplicatedCommand) -> None:
        """Remember a command for the next entry; renewals of one session become one."""
        if ref and isinstance(command, KeepAlive) and len(command.sessions) == 1:
            self._keepalives.setdefault(command.sessions[0], []).append(ref)
        else:
            self._submitted.append((ref, command))

    def take_batch(self, expire: ReplicatedCommand | None, limit_bytes: int) -> Batch:
        """Take the commands of the next entry, expiries first; it may come out empty."""
        keepalives, self._keepalives = self._keepalives, {}
        batch = Batch(commands=[], refs=[], keepalives=keepalives, expires=expire is not None)
        if expire is not None:
            batch.commands.append(expire)
            batch.refs.append(NO_REF)
        if keepalives:
            batch.commands.append(KeepAlive(sessions=tuple(keepalives)))
            batch.refs.append(NO_REF)
        taken = 0
        size_bytes = 0
        for ref, command in self._submitted[:MAX_COMMANDS_PER_ENTRY]:
            size_bytes += _weight_bytes(command)
            if size_bytes > limit_bytes and taken:
                break
            taken += 1
            batch.commands.append(command)
            batch.refs.append(ref)
        del self._submitted[:taken]
        return batch

    def park(self, ref: int, key: RequestKey, attempt: int) -> None:
        """The request behind `ref` waits in a queue."""
        self._parked[ref] = key
        self._waiting.setdefault(key, []).append(ref)
        self._attempts[key] = max(attempt, self._attempts.get(key, 0))

    def parked_gone(self, key: RequestKey, attempt: int) -> int | None:
        """A request waits whose connection is gone; return the attempt to cancel, if any.

        While another connection waits for the same request nothing is cancelled: attempts may
        arrive in another order than the client made them, and the one that is left waits on.
        """
        if key not in self._waiting:
            return attempt
        self._attempts[key] = max(attempt, self._attempts[key])
        return None

    def unpark(self, key: RequestKey) -> list[int]:
        """Return and forget every connection that waits for this request."""
        refs = self._waiting.pop(key, [])
        self._attempts.pop(key, None)
        for ref in refs:
            del self._parked[ref]
        return refs

    def disconnect(self, ref: int) -> tuple[RequestKey, int] | None:
        """Forget a connection; return (key, attempt) to cancel if nobody waits for it any more."""
        key = self._parked.pop(ref, None)
        if key is not None:
            refs = self._waiting[key]
            refs.remove(ref)
            if refs:
                return None
            del self._waiting[key]
            return key, self._attempts.pop(key)
        for position, (submitted_ref, _) in enumerate(self._submitted):
            if submitted_ref == ref:
                del self._submitted[position]
                return None
        if any(ref in batch.refs for batch in self.batches.values()):
            self.abandoned.add(ref)
        return None

    def drain(self) -> tuple[list[int], list[int]]:
        """Forget everything that waits for a leader's outcome.

        Returns the refs that were never proposed, and those that were.
        """
        unproposed = [ref for ref, _ in self._submitted if ref]
        for refs in self._keepalives.values():
            unproposed.extend(refs)
        proposed = [
            ref
            for batch in self.batches.values()
            for ref in batch.all_refs()
            if ref not in self.abandoned
        ]
        proposed.extend(self._parked)
        self._submitted = []
        self._keepalives = {}
        self.batches.clear()
        self.abandoned.clear()
        self._parked.clear()
        self._waiting.clear()
        self._attempts.clear()
        return unproposed, proposed

    def await_applied(self, ref: int, index: LogIndex) -> None:
        """Remember a read that may be served once `index` is applied."""
        self._sequence += 1
        heapq.heappush(self._reads, (index, self._sequence, ref))

    def applied(self, index: LogIndex) -> list[int]:
        """Return and forget the reads that may be served after `index`."""
        refs = []
        while self._reads and self._reads[0][0] <= index:
            refs.append(heapq.heappop(self._reads)[2])
        return refs

    def drain_reads(self) -> list[int]:
        """Return and forget every read that waits for an index."""
        refs = [ref for _, _, ref in self._reads]
        self._reads = []
        return refs
