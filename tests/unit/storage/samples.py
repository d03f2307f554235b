"""Small building blocks for storage tests."""

from __future__ import annotations

from distsync_node.raft.types import (
    Configuration,
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Member,
    MemberId,
    Persist,
    Snapshot,
    SnapshotMeta,
    Term,
)

_MEMBER = Member(id=MemberId("00000000000000aa"), name="n1", peer_url="http://n1:8180", voter=True)


def entry(index: int, term: int = 1, payload: bytes = b"command") -> Entry:
    return Entry(Term(term), LogIndex(index), EntryKind.COMMANDS, index * 10, payload)


def entries(first: int, last: int, term: int = 1, payload: bytes = b"command") -> tuple[Entry, ...]:
    return tuple(entry(index, term, payload) for index in range(first, last + 1))


def snapshot(index: int, term: int = 1, data: bytes = b"state") -> Snapshot:
    meta = SnapshotMeta(
        cluster_id="c1",
        index=LogIndex(index),
        term=Term(term),
        stamp_ms=index * 10,
        cluster_version=1,
        configuration=Configuration(LogIndex(1), (_MEMBER,)),
    )
    return Snapshot(meta, data)


def hard_state(term: int, vote: str | None = None) -> HardState:
    return HardState(Term(term), MemberId(vote) if vote else None)


GENESIS = snapshot(1)
GENESIS_HARD_STATE = hard_state(1)


def append(first: int, last: int, term: int = 1, payload: bytes = b"command") -> Persist:
    return Persist(seq=last, entries=entries(first, last, term, payload))
