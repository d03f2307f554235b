"""Who differs from a quorum is named; without a quorum nobody is."""

from __future__ import annotations

from distsync_node.raft.types import LogIndex, MemberId
from distsync_node.replica.divergence import REMEMBERED_INDEXES, HashBoard

A, B, C, L = (MemberId(name) for name in "abcl")
AT = LogIndex(1_024)


def test_the_minority_is_named() -> None:
    board = HashBoard()
    board.report(A, AT, 1)
    board.report(B, AT, 1)
    board.report(C, AT, 2)
    assert board.diverged(AT, (A, B, C)) == (C,)


def test_a_learner_that_differs_is_named_but_has_no_vote() -> None:
    board = HashBoard()
    for member, state_hash in ((A, 1), (B, 1), (L, 2)):
        board.report(member, AT, state_hash)
    assert board.diverged(AT, (A, B, C)) == (L,)


def test_without_a_quorum_there_is_no_verdict() -> None:
    board = HashBoard()
    board.report(A, AT, 1)
    board.report(B, AT, 2)
    assert board.diverged(AT, (A, B, C)) == ()
    assert board.diverged(LogIndex(2_048), (A, B, C)) == ()


def test_only_recent_indexes_are_remembered() -> None:
    board = HashBoard()
    for step in range(REMEMBERED_INDEXES + 1):
        board.report(A, LogIndex(AT + step), 1)
        board.report(B, LogIndex(AT + step), 2)
        board.report(C, LogIndex(AT + step), 1)
    assert board.diverged(AT, (A, B, C)) == ()
    assert board.diverged(LogIndex(AT + 1), (A, B, C)) == (B,)
