"""What every role shares: log, term, vote, commit, configuration, and how they change.

Guarantees
- Term and vote change only here; each change is handed to the disk in the step that made it, and
  `reply` holds an answer back until it is there (thesis figure 3.1).
- The commit index never falls and never passes the end of the log; committed entries are emitted
  once, in order. A configuration takes effect in the step that emits its entry, so nobody
  campaigns with a committed change unapplied (thesis §4.1; here at apply, not at append).
- Role-specific state lives in `leadership` or `ballot` and dies with the role.

After a restart the commit index is not known exactly. It restarts at the snapshot, or at what the
hard state notes, or at the last but one CONFIG entry of the log, whichever is latest: a leader
proposes a change only once the one before is committed and applied, so an entry that was appended
proves that its predecessor is committed. Without that rule a restarted member could campaign with a
configuration two changes old, whose quorums need not meet the present ones. And because a change
that is applied is noted at once, a restarted group does not depend on a member of the configuration
before: it would if that one's disk were lost, and never elect anybody again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from distsync_node.errors import InvariantViolation
from distsync_node.raft.disk import DiskQueue
from distsync_node.raft.log import Log
from distsync_node.raft.membership import apply_change, decode_change
from distsync_node.raft.types import (
    Apply,
    Configuration,
    ConfigurationChanged,
    EntryKind,
    HardState,
    LogIndex,
    MemberId,
    RaftEffect,
    RaftOptions,
    RecoveredState,
    Restore,
    Role,
    RoleChanged,
    Send,
    Snapshot,
    Term,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distsync_node.raft.election import Ballot
    from distsync_node.raft.follower import SnapshotAssembly
    from distsync_node.raft.leader import Leader
    from distsync_node.raft.types import Entry, RaftMessage


class Randomness(Protocol):
    """The part of `random.Random` that is used."""

    def randint(self, a: int, b: int) -> int:
        """Return an integer of [a, b]."""
        ...


class RaftState:
    """One member's view of the group, and the effects of the step under way."""

    __slots__ = (
        "_announced",
        "_removed",
        "applied_index",
        "assembly",
        "ballot",
        "commit_index",
        "configuration",
        "disk",
        "effects",
        "election_deadline_ms",
        "election_timeout_ms",
        "is_voter",
        "leader",
        "leader_contact_ms",
        "leadership",
        "log",
        "member_id",
        "now_ms",
        "options",
        "random",
        "role",
        "snapshot",
        "term",
        "vote",
        "voters",
    )

    def __init__(
        self, recovered: RecoveredState, options: RaftOptions, random: Randomness, now_ms: int
    ) -> None:
        meta = recovered.snapshot.meta
        self.member_id = recovered.member_id
        self.options = options
        self.random = random
        self.now_ms = now_ms
        self.snapshot = recovered.snapshot
        self.log = Log.recover(meta, recovered.entries)
        self.disk = DiskQueue(self.log.last_index)
        self.effects: list[RaftEffect] = []
        self.term = recovered.hard_state.term
        self.vote = recovered.hard_state.vote
        self.role = Role.FOLLOWER
        self.leader: MemberId | None = None
        self.leader_contact_ms = now_ms
        self.leadership: Leader | None = None
        self.ballot: Ballot | None = None
        self.assembly: SnapshotAssembly | None = None
        self.applied_index = meta.index
        noted = min(recovered.hard_state.commit, self.log.last_index)
        self.commit_index = max(meta.index, noted, _proven_commit(self.log, meta.index))
        if self.log.last_term > self.term:
            # Genesis hands out a log of term 1 before anybody has voted.
            self.term, self.vote = self.log.last_term, None
            self.disk.stage_hard_state()
        self._announced: tuple[Role, Term, MemberId | None] = (self.role, self.term, None)
        self._adopt_configuration(meta.configuration)
        self.election_timeout_ms = 0
        self.election_deadline_ms = 0
        self.reset_election_timer()
        if self.voters == (self.member_id,):
            self.election_deadline_ms = now_ms  # there is nobody to wait for

    # --- Effects ------------------------------------------------------------------------------

    def send(self, to: MemberId, message: RaftMessage) -> None:
        """Send something that depends on nothing undurable."""
        self.effects.append(Send(to=to, message=message))

    def reply(self, to: MemberId, message: RaftMessage) -> None:
        """Send something that relies on the present term and vote."""
        if self.disk.hard_durable:
            self.effects.append(Send(to=to, message=message))
        else:
            self.disk.stage_message(to, message)

    def flush(self) -> None:
        """Emit the Persist gathered so far, if there is any."""
        if self.disk.staged:
            self.effects.append(self.disk.flush(HardState(self.term, self.vote, self.commit_index)))

    def _announce(self) -> None:
        announced = (self.role, self.term, self.leader)
        if announced != self._announced:
            self._announced = announced
            self.effects.append(RoleChanged(role=self.role, term=self.term, leader=self.leader))

    # --- Terms and roles ----------------------------------------------------------------------

    def become_follower(self, term: Term, leader: MemberId | None) -> None:
        """Follow in `term`, which is this one or a later one."""
        if term < self.term:
            raise InvariantViolation(f"term {self.term} cannot fall to {term}")
        if term > self.term:
            self.term, self.vote = term, None
            self.disk.stage_hard_state()
            self.assembly = None  # the next leader's snapshot may be encoded otherwise
        if self.leadership is not None:
            self.leadership.resign()
            self.leadership = None
        self.ballot = None
        self.leader = leader
        if self.role is not Role.FOLLOWER:
            self.role = Role.FOLLOWER
            self.reset_election_timer()
        self._announce()

    def become_pre_candidate(self, ballot: Ballot) -> None:
        """Ask whether an election could be won; the term stays (thesis §9.6)."""
        self.role = Role.PRE_CANDIDATE
        self.leader = None
        self.ballot = ballot
        self.reset_election_timer()
        self._announce()

    def become_candidate(self, ballot: Ballot) -> None:
        """Enter the next term and vote for oneself; both go to the disk first."""
        self.role = Role.CANDIDATE
        self.term = Term(self.term + 1)
        self.vote = self.member_id
        self.disk.stage_hard_state()
        self.leader = None
        self.ballot = ballot
        self.reset_election_timer()
        self._announce()

    def become_leader(self, leadership: Leader) -> None:
        """Lead the present term, whose election was won."""
        self.role = Role.LEADER
        self.leader = self.member_id
        self.ballot = None
        self.assembly = None
        self.leadership = leadership
        self._announce()

    def grant_vote(self, candidate: MemberId) -> None:
        """Vote in the present term, once."""
        if self.vote not in (None, candidate):
            raise InvariantViolation(f"second vote in term {self.term}: {self.vote}, {candidate}")
        if self.vote is None:
            self.vote = candidate
            self.disk.stage_hard_state()
        self.reset_election_timer()

    def hear_leader(self, leader: MemberId) -> None:
        """A message of the present term's leader arrived."""
        if self.leader != leader or self.role is not Role.FOLLOWER:
            if self.role is Role.LEADER or self.leader not in (None, leader):
                raise InvariantViolation(
                    f"two leaders in term {self.term}: {self.leader} and {leader}"
                )
            self.become_follower(self.term, leader)
        self.leader_contact_ms = self.now_ms
        self.election_deadline_ms = self.now_ms + self.election_timeout_ms

    def hears_leader(self) -> bool:
        """Whether there is a live leader, whom no vote may disturb (thesis §4.2.3)."""
        if self.leadership is not None:
            contact_ms = self.leadership.contact_ms()
        elif self.leader is not None:
            contact_ms = self.leader_contact_ms
        else:
            return False
        return self.now_ms - contact_ms < self.options.election_timeout_min_ms

    def reset_election_timer(self) -> None:
        """Draw a new timeout and start it now."""
        self.election_timeout_ms = self.random.randint(
            self.options.election_timeout_min_ms, self.options.election_timeout_max_ms
        )
        self.election_deadline_ms = self.now_ms + self.election_timeout_ms

    # --- Log, commit, configuration -----------------------------------------------------------

    def replace_suffix(self, entries: tuple[Entry, ...]) -> None:
        """Append entries, which replace whatever the log holds from their first index on."""
        first = entries[0].index
        if first <= self.log.last_index:
            if first <= self.commit_index:
                raise InvariantViolation(f"entry {first} is committed and cannot be replaced")
            self.log.truncate_from(first)
            self.disk.truncated_from(first)
        self.log.extend(entries)
        self.disk.stage_entries(entries)

    def advance_commit(self, index: int) -> bool:
        """Commit up to `index` and emit what became committed.

        Returns whether the configuration changed.
        """
        if index <= self.commit_index:
            return False
        if index > self.log.last_index:
            raise InvariantViolation(f"commit {index} past the last entry {self.log.last_index}")
        self.commit_index = LogIndex(index)
        return self.apply_committed()

    def apply_committed(self) -> bool:
        """Emit the committed entries not yet emitted; returns as `advance_commit` does."""
        entries = self.log.slice(self.applied_index + 1, self.commit_index)
        self.applied_index = self.commit_index
        self.effects.append(Apply(entries=entries))
        changed = False
        for entry in entries:
            if entry.kind == EntryKind.CONFIG:
                change = decode_change(entry.payload)
                self._adopt_configuration(apply_change(self.configuration, change, entry.index))
                self.effects.append(ConfigurationChanged(configuration=self.configuration))
                changed = True
        if changed:
            self.disk.note_commit()
        return changed

    def install_snapshot(self, snapshot: Snapshot) -> None:
        """Put a received snapshot in place of log and state."""
        meta = snapshot.meta
        # Of the old log only the committed part may still be vouched for.
        self.disk.truncated_from(self.commit_index + 1)
        self.log.reset(meta.index, meta.term, meta.stamp_ms)
        self.snapshot = snapshot
        self.commit_index = self.applied_index = meta.index
        self.disk.stage_snapshot(snapshot, LogIndex(meta.index + 1), discard_log=True)
        changed = meta.configuration != self.configuration
        self._adopt_configuration(meta.configuration)
        self.effects.append(Restore(snapshot=snapshot))
        if changed:
            self.effects.append(ConfigurationChanged(configuration=self.configuration))

    def compact(self, snapshot: Snapshot) -> None:
        """Take over a snapshot of the applied state and forget entries it covers."""
        meta = snapshot.meta
        if meta.index <= self.snapshot.meta.index:
            return
        if meta.index > self.applied_index or self.log.term_at(meta.index) != meta.term:
            raise InvariantViolation(
                f"snapshot of {meta.index} in term {meta.term}, applied {self.applied_index}"
            )
        if self.configuration.index <= meta.index and meta.configuration != self.configuration:
            raise InvariantViolation(f"snapshot of {meta.index} has another configuration")
        self.snapshot = snapshot
        keep_from = max(meta.index + 1 - self.options.retained_entries, self.log.first_index)
        self.log.compact_to(keep_from - 1)
        self.disk.stage_snapshot(snapshot, LogIndex(keep_from), discard_log=False)

    def is_removed(self, member_id: MemberId) -> bool:
        """Whether that id was a member once and must stay out."""
        return member_id in self._removed

    def _adopt_configuration(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.voters = configuration.voters
        self.is_voter = self.member_id in self.voters
        self._removed = frozenset(configuration.removed)


def _proven_commit(log: Log, snapshot_index: LogIndex) -> LogIndex:
    """Return the last but one CONFIG entry behind the snapshot (see the module's head)."""
    entries: Sequence[Entry] = log.slice(max(snapshot_index + 1, log.first_index), log.last_index)
    indexes = [entry.index for entry in entries if entry.kind == EntryKind.CONFIG]
    return indexes[-2] if len(indexes) > 1 else LogIndex(0)
