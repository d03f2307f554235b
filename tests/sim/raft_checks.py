"""What must hold of consensus at every instant, judged from outside by one who sees all members.

The names of the checks, as failures tell them:

    raft.two_leaders        two members led the same term
    raft.election_safety    a new leader lacks an entry that was applied in an earlier term
    raft.vote_not_durable   a vote, or a leadership, that the member's disk does not know of
    raft.two_votes          one member voted for two candidates in a term, restarts included
    raft.append_not_durable an acknowledgement of entries that are not on the member's disk
    raft.log_matching       two members applied different entries at one index
    raft.order              entries applied out of order, twice, or with a gap
    raft.prior_term         a leader committed up to an entry that is not of its own term
    raft.quorum             an entry was applied that no quorum of the voters held durably
    raft.config_overlap     a membership change proposed before an entry of the leader's own term
                            was committed, or beside another change
    raft.removed_returns    a member that noted its removal takes part after a restart
    raft.genesis            a member took a list of founders that nobody made, or that lacks it
    raft.two_clusters       two clusters with different founders both made progress
    raft.configuration      two members have different configurations at one index
    raft.not_a_voter        a member took the lead that no configuration of late has as a voter
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import msgspec

from distsync_node.raft.membership import apply_change, decode_change
from distsync_node.raft.types import (
    AppendResponse,
    Configuration,
    Entry,
    EntryKind,
    LogIndex,
    MemberId,
    Persist,
    Role,
    RoleChanged,
    Snapshot,
    SnapshotResponse,
    VoteResponse,
)
from distsync_node.replica.genesis import founders_digest
from distsync_node.replica.types import PeerMessage, ReplicaState
from sim.disk import Disk
from sim.kernel import Kernel, Violation

if TYPE_CHECKING:
    from sim.host import Host

Identity: TypeAlias = tuple[int, EntryKind, int, bytes]
Kin: TypeAlias = tuple[str, int]  # cluster id, and a digest of the founders


def _identity(entry: Entry) -> Identity:
    return entry.term, entry.kind, entry.stamp_ms, entry.payload


def _kin(host: Host) -> Kin:
    return host.replica.cluster_id, host.replica.founders


class RaftChecks:
    """The log as it was committed, and everything that contradicts it."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.committed: dict[int, Identity] = {}
        self.last_index = 0  # highest index applied anywhere
        self.configurations: list[Configuration] = []  # as committed, in order
        self.disks: dict[MemberId, Disk] = {}  # every disk there ever was, wiped ones too
        self.leaders: dict[int, MemberId] = {}
        self.proposed_us: dict[tuple[int, int], int] = {}  # (index, term) -> when
        self._kin: Kin = ("", 0)
        self._compared: dict[str, Configuration] = {}
        self._last_in: dict[int, int] = {}  # last index applied while somebody was in that term
        self._last_change = (0, 0)
        self._votes: dict[tuple[int, MemberId], MemberId] = {}
        self._applied: dict[str, int] = {}

    # --- Members ------------------------------------------------------------------------------

    def started(self, host: Host) -> None:
        """A process starts from its snapshot."""
        self.disks[host.member_id] = host.disk
        snapshot = host.disk.snapshot
        self._applied[host.name] = 0
        if host.disk.removed and host.replica.state != "removed":
            self._fail("raft.removed_returns", host, f"is {host.replica.state}")
        if snapshot is not None:
            self._take_snapshot(host, snapshot)

    def founded(self, host: Host, lists: set[tuple[MemberId, ...]]) -> None:
        """A member's genesis is on its disk; `lists` are those that somebody made."""
        founders = tuple(member.id for member in host.replica.genesis)
        if founders and (founders not in lists or host.member_id not in founders):
            self._fail("raft.genesis", host, f"founded with {founders}")

    def restored(self, host: Host, snapshot: Snapshot) -> None:
        """A received snapshot replaced state and log."""
        if snapshot.meta.index <= self._applied.get(host.name, 0):
            self._fail("raft.order", host, f"went back to snapshot {snapshot.meta.index}")
        self._take_snapshot(host, snapshot)

    def _take_snapshot(self, host: Host, snapshot: Snapshot) -> None:
        meta = snapshot.meta
        known = self.committed.get(meta.index)
        if known is not None and known[0] != meta.term:
            self._fail("raft.log_matching", host, f"snapshot {meta.index} of term {meta.term}")
        self._applied[host.name] = meta.index
        founded = self.configurations and meta.index >= self.configurations[0].index
        if founded and _kin(host) == self._kin:
            self._check_configuration(host, meta.configuration, meta.index)

    @property
    def configuration(self) -> Configuration:
        """The newest configuration that is in force anywhere."""
        if not self.configurations:
            return Configuration(index=LogIndex(0), members=())
        return self.configurations[-1]

    def is_kin(self, disk: Disk) -> bool:
        """Whether a disk belongs to the cluster that came to be."""
        snapshot = disk.snapshot
        if snapshot is None:
            return False
        genesis = msgspec.msgpack.decode(snapshot.data, type=ReplicaState).genesis
        return (snapshot.meta.cluster_id, founders_digest(genesis)) == self._kin

    # --- Applying -----------------------------------------------------------------------------

    def applied(self, host: Host, entry: Entry) -> bool:
        """Judge an entry that a member applies; returns whether it is the first to do so."""
        expected = self._applied.get(host.name, 0) + 1
        if entry.index != expected:
            # A member that starts in the middle of a cluster's life begins with its snapshot.
            self._fail("raft.order", host, f"applied {entry.index} instead of {expected}")
        self._applied[host.name] = entry.index
        if not self.configurations:
            self._begin(host)
        if _kin(host) != self._kin:
            self._fail("raft.two_clusters", host, f"{_kin(host)} beside {self._kin}")
        identity = _identity(entry)
        known = self.committed.get(entry.index)
        if known is not None:
            if known != identity:
                self._fail("raft.log_matching", host, f"{identity} at {entry.index}, was {known}")
            self._check_own_configuration(host, entry.index)
            return False
        self.committed[entry.index] = identity
        if not self._is_durable(entry.index, entry.term):
            self._fail("raft.quorum", host, f"applied {entry.index} of term {entry.term}")
        self.last_index = max(self.last_index, entry.index)
        self._check_commit(host)
        if entry.kind is EntryKind.CONFIG:
            self._change_configuration(entry)
        self._check_own_configuration(host, entry.index)
        return True

    def _check_commit(self, host: Host) -> None:
        raft = host.replica.raft
        if raft is None:
            return
        self._last_in[raft.term] = self.last_index
        committed_term = raft._state.log.term_at(raft.commit_index)
        if raft.role is Role.LEADER and committed_term != raft.term:
            self._fail("raft.prior_term", host, f"{raft.commit_index} of {committed_term}")

    def _begin(self, host: Host) -> None:
        """The first entry of all tells which genesis came to be."""
        snapshot = host.disk.snapshot
        if snapshot is None:
            self._fail("raft.order", host, "applies without a genesis")
            return
        self._kin = _kin(host)
        self.configurations.append(snapshot.meta.configuration)

    def _check_own_configuration(self, host: Host, index: int) -> None:
        configuration = host.replica.configuration
        if self._compared.get(host.name) is not configuration and configuration.index <= index:
            self._compared[host.name] = configuration
            self._check_configuration(host, configuration, index)

    def _check_configuration(self, host: Host, own: Configuration, index: int) -> None:
        for known in reversed(self.configurations):
            if known.index <= index:
                if (known.members, known.removed) != (own.members, own.removed):
                    self._fail("raft.configuration", host, f"{own} at {index}, others {known}")
                return

    def _is_durable(self, index: int, term: int) -> bool:
        """Whether a quorum holds an entry, by one of the configurations that may be counted by."""
        for configuration in self.configurations[-2:]:
            voters = configuration.voters
            holders = sum(
                1
                for voter in voters
                if (disk := self.disks.get(voter)) is not None and disk.holds(index, term)
            )
            if holders > len(voters) // 2:
                return True
        return False

    def _change_configuration(self, entry: Entry) -> None:
        change = decode_change(entry.payload)
        self.configurations.append(apply_change(self.configuration, change, entry.index))
        self._kernel.faults[f"config_{change.operation.name.lower()}"] += 1

    # --- Leading ------------------------------------------------------------------------------

    def role_changed(self, host: Host, effect: RoleChanged) -> None:
        """Judge a new leader."""
        if effect.role is not Role.LEADER:
            return
        if self.configurations and _kin(host) != self._kin:
            return  # of a cluster that will not come to be
        first = self.leaders.setdefault(effect.term, host.member_id)
        if first != host.member_id:
            self._fail("raft.two_leaders", host, f"leads term {effect.term}, as {first} does")
        hard_state = host.disk.hard_state
        if hard_state is None or (hard_state.term, hard_state.vote) != (
            effect.term,
            host.member_id,
        ):
            self._fail("raft.vote_not_durable", host, f"leads {effect.term} with {hard_state}")
        voters = {voter for recent in self.configurations[-3:] for voter in recent.voters}
        if voters and host.member_id not in voters:
            self._fail("raft.not_a_voter", host, f"leads term {effect.term}")
        self._check_complete(host, effect.term)

    def _check_complete(self, host: Host, term: int) -> None:
        """A leader holds what was committed in earlier terms (one elected late, no more)."""
        raft = host.replica.raft
        index = max((at for other, at in self._last_in.items() if other < term), default=0)
        if raft is None or index not in self.committed:
            return
        log = raft._state.log
        if index > log.base_index and not log.matches(index, self.committed[index][0]):
            self._fail("raft.election_safety", host, f"leads term {term} without {index}")

    # --- What leaves --------------------------------------------------------------------------

    def sending(self, host: Host, to: MemberId, message: PeerMessage) -> None:
        """Judge a promise against the disk of who makes it."""
        match message:
            case VoteResponse(granted=True):
                self._check_vote(host, to, message)
            case AppendResponse(accepted=True):
                self._check_match(host, message)
            case SnapshotResponse(installed=True):
                if message.index > host.disk.last_index:
                    self._fail("raft.append_not_durable", host, str(message))
            case _:
                pass

    def _check_match(self, host: Host, message: AppendResponse) -> None:
        index, raft = message.match_index, host.replica.raft
        is_durable = index <= host.disk.last_index
        if raft is not None and message.term == raft.term and is_durable:
            log = raft._state.log
            if log.base_index < index <= log.last_index:
                is_durable = host.disk.holds(index, log.term_at(index))
        if not is_durable:
            detail = f"{message}; the disk ends at {host.disk.last_index}"
            self._fail("raft.append_not_durable", host, detail)

    def _check_vote(self, host: Host, to: MemberId, message: VoteResponse) -> None:
        first = self._votes.setdefault((message.term, host.member_id), to)
        if first != to:
            self._fail("raft.two_votes", host, f"{first} and {to} in term {message.term}")
        if self.leaders.get(message.term) == host.member_id:
            self._fail("raft.two_votes", host, f"{to} in term {message.term}, which it led")
        hard_state = host.disk.hard_state
        is_kept = hard_state is not None and (
            hard_state.term > message.term
            or (hard_state.term == message.term and hard_state.vote == to)
        )
        if not is_kept:
            self._fail("raft.vote_not_durable", host, f"{message}; the disk has {hard_state}")

    def persisting(self, host: Host, effect: Persist) -> None:
        """Note when entries are proposed."""
        raft = host.replica.raft
        if not effect.entries or raft is None or raft.role is not Role.LEADER:
            return
        for entry in effect.entries:
            if (entry.index, entry.term) not in self.proposed_us:
                self.proposed_us[entry.index, entry.term] = self._kernel.now_us
                if entry.kind is EntryKind.CONFIG and entry.term == raft.term:
                    self._check_change_alone(host, entry)

    def _check_change_alone(self, host: Host, entry: Entry) -> None:
        newest = self.committed.get(self.last_index)
        if newest is None or newest[0] < entry.term:
            self._fail("raft.config_overlap", host, f"{entry.index} before its term's first commit")
        earlier, self._last_change = self._last_change, (entry.index, entry.term)
        if earlier[1] == entry.term and earlier[0] > self.last_index:
            self._fail("raft.config_overlap", host, f"{entry.index} beside uncommitted {earlier}")

    def _fail(self, check: str, host: Host, detail: str) -> None:
        raise Violation(check, f"{host.name} ({host.member_id}): {detail}")
