"""Comparison of state hashes: a replica whose state differs from a quorum's must not serve.

Each member hashes its state after every `interval`-th entry and reports to the leader. A verdict
needs the same hash from a quorum of voters at the same index; who then differs is told to stop.
"""

from __future__ import annotations

from collections import Counter

from distsync_node.raft.types import LogIndex, MemberId

REMEMBERED_INDEXES = 16


class HashBoard:
    """The hashes reported for the most recent indexes."""

    __slots__ = ("_reports",)

    def __init__(self) -> None:
        self._reports: dict[LogIndex, dict[MemberId, int]] = {}

    def report(self, member: MemberId, index: LogIndex, state_hash: int) -> None:
        """Note a member's hash; only the newest indexes are remembered."""
        self._reports.setdefault(index, {})[member] = state_hash
        while len(self._reports) > REMEMBERED_INDEXES:
            del self._reports[min(self._reports)]

    def diverged(self, index: LogIndex, voters: tuple[MemberId, ...]) -> tuple[MemberId, ...]:
        """Return the members that differ from a quorum of `voters` at `index`, sorted."""
        reports = self._reports.get(index, {})
        votes = Counter(reports[voter] for voter in voters if voter in reports)
        if not votes:
            return ()
        state_hash, count = votes.most_common(1)[0]
        if count <= len(voters) // 2:
            return ()
        return tuple(sorted(member for member, value in reports.items() if value != state_hash))
