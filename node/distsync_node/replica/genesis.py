"""The first snapshot of a member: a cluster's genesis, or the blank start of one that joins."""

from __future__ import annotations

import hashlib

import msgspec

from distsync_node.locks.machine import LockMachine
from distsync_node.raft.types import (
    Configuration,
    LogIndex,
    Member,
    Snapshot,
    SnapshotMeta,
    Term,
)
from distsync_node.replica.policy import wanted_voters
from distsync_node.replica.types import ReplicaState

MAX_VOTERS = 7


def founders_digest(members: tuple[Member, ...]) -> int:
    """Return 48 bits that tell one list of founders from another; 0 for an unknown list.

    An operator that names the cluster after its resource may found it twice: when the first call is
    late and a founder's disk was lost meanwhile, the second has another list under the same id.
    Members of the two must not take each other for theirs: their quorums need not meet.
    """
    if not members:
        return 0
    ids = msgspec.msgpack.encode([member.id for member in members])
    return int.from_bytes(hashlib.blake2b(ids, digest_size=6).digest(), "big") or 1


def genesis_snapshot(cluster_id: str, members: tuple[Member, ...], version: int) -> Snapshot:
    """Return the first snapshot of a cluster: the same bytes on every member of the list."""
    voters = wanted_voters(len(members), MAX_VOTERS)
    listed = tuple(
        msgspec.structs.replace(member, voter=position < voters)
        for position, member in enumerate(members)
    )
    configuration = Configuration(
        index=LogIndex(1), members=tuple(sorted(listed, key=lambda member: member.id))
    )
    return _first_snapshot(cluster_id, LogIndex(1), Term(1), version, configuration, members)


def _first_snapshot(
    cluster_id: str,
    index: LogIndex,
    term: Term,
    version: int,
    configuration: Configuration,
    genesis: tuple[Member, ...],
) -> Snapshot:
    return Snapshot(
        meta=SnapshotMeta(
            cluster_id=cluster_id,
            index=index,
            term=term,
            stamp_ms=0,
            cluster_version=version,
            configuration=configuration,
        ),
        data=msgspec.msgpack.encode(
            ReplicaState(machine=LockMachine().snapshot(), genesis=genesis)
        ),
    )


def blank_snapshot(cluster_id: str, version: int) -> Snapshot:
    """Return the start of a member that a cluster knows and that has nothing yet."""
    blank = Configuration(index=LogIndex(0), members=())
    return _first_snapshot(cluster_id, LogIndex(0), Term(0), version, blank, genesis=())
