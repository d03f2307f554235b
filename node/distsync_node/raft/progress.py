"""How far one follower is, as its leader knows, and what may be sent to it next.

    PROBE      the match is not known; one append at a time, backwards on refusal
    REPLICATE  appends are pipelined: `next_index` runs ahead of `match_index`, bounded by requests
               and bytes in flight
    SNAPSHOT   the entries it needs are compacted; a snapshot goes over chunk by chunk

Invariants: match_index < next_index; match_index never falls while the leader leads. Model: the
progress of etcd's raft, and thesis §10.2.1 (pipelining).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from distsync_node.raft.types import LogIndex, MemberId, Snapshot

if TYPE_CHECKING:
    from distsync_node.raft.types import RaftOptions


class ProgressState(IntEnum):
    """How a follower is being fed."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberProgress:
    """A follower as seen from outside of the core; `last_contact_ms` is a time of receipt."""

    match_index: LogIndex
    state: ProgressState
    last_contact_ms: int | None


class Progress:
    """One follower's progress; mutable, owned by the leader."""

    __slots__ = (
        "_inflight",
        "acked_round",
        "acked_sent_ms",
        "commit_sent",
        "inflight_bytes",
        "last_contact_ms",
        "match_index",
        "member_id",
        "next_index",
        "probe_sent",
        "snapshot",
        "snapshot_offset",
        "snapshot_sent_ms",
        "state",
        "voter",
    )

    def __init__(self, member_id: MemberId, next_index: LogIndex, *, voter: bool) -> None:
        self.member_id = member_id
        self.voter = voter
        self.state = ProgressState.PROBE
        self.match_index = LogIndex(0)
        self.next_index = next_index
        self.probe_sent = False
        self._inflight: deque[tuple[LogIndex, int]] = deque()  # (last index, bytes) a request
        self.inflight_bytes = 0
        self.acked_round = 0
        self.acked_sent_ms: int | None = None  # when the latest acknowledged round was sent
        self.last_contact_ms: int | None = None
        self.commit_sent = LogIndex(0)
        self.snapshot: Snapshot | None = None
        self.snapshot_offset = 0
        self.snapshot_sent_ms = 0

    @property
    def inflight_count(self) -> int:
        """How many pipelined requests are not answered."""
        return len(self._inflight)

    def may_send_entries(self, options: RaftOptions) -> bool:
        """Whether another append with entries may leave now."""
        match self.state:
            case ProgressState.REPLICATE:
                return (
                    len(self._inflight) < options.max_inflight_requests
                    and self.inflight_bytes < options.max_inflight_bytes
                )
            case ProgressState.PROBE:
                return not self.probe_sent
            case ProgressState.SNAPSHOT:
                return False

    def entries_sent(self, last_index: LogIndex, size_bytes: int) -> None:
        """An append with entries up to that index left."""
        if self.state is ProgressState.REPLICATE:
            self._inflight.append((last_index, size_bytes))
            self.inflight_bytes += size_bytes
            self.next_index = LogIndex(last_index + 1)
        else:
            self.probe_sent = True

    def accepted(self, match_index: LogIndex) -> bool:
        """The follower holds the log durably up to there; returns whether that is news."""
        inflight = self._inflight
        while inflight and inflight[0][0] <= match_index:
            self.inflight_bytes -= inflight.popleft()[1]
        if match_index <= self.match_index:
            return False
        self.match_index = match_index
        if self.next_index <= match_index:
            self.next_index = LogIndex(match_index + 1)
        return True

    def become_probe(self, next_index: int) -> None:
        """Find the match again, from there backwards."""
        self._reset(ProgressState.PROBE)
        self.next_index = LogIndex(max(next_index, self.match_index + 1))

    def become_replicate(self) -> None:
        """The match is known: send ahead."""
        self._reset(ProgressState.REPLICATE)
        self.next_index = LogIndex(self.match_index + 1)

    def become_snapshot(self, snapshot: Snapshot, now_ms: int) -> None:
        """Send a snapshot from its beginning."""
        self._reset(ProgressState.SNAPSHOT)
        self.snapshot = snapshot
        self.snapshot_sent_ms = now_ms

    def view(self) -> MemberProgress:
        """Return what may be shown outside."""
        return MemberProgress(
            match_index=self.match_index,
            state=self.state,
            last_contact_ms=self.last_contact_ms,
        )

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.probe_sent = False
        self._inflight.clear()
        self.inflight_bytes = 0
        self.snapshot = None
        self.snapshot_offset = 0
