"""Counting: who has won, what is committed. Tiny pure functions over plain values.

A quorum is a strict majority of the voters (thesis §3.4, §3.6); of an even number of voters that is
one more than half.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class Tally(IntEnum):
    """The standing of a vote."""

    PENDING = 0
    WON = 1
    LOST = 2


def quorum_size(voter_count: int) -> int:
    """Return how many voters make a quorum."""
    return voter_count // 2 + 1


def tally(voters: Collection[str], granted: Collection[str], refused: Collection[str]) -> Tally:
    """Judge a vote; answers of members that are no voters do not count.

    Without voters nobody can win.
    """
    needed = quorum_size(len(voters))
    if sum(voter in granted for voter in voters) >= needed:
        return Tally.WON
    open_count = sum(voter not in granted and voter not in refused for voter in voters)
    if sum(voter in granted for voter in voters) + open_count < needed:
        return Tally.LOST
    return Tally.PENDING


def reached_by_quorum(values: Sequence[int]) -> int:
    """Return the largest number that a quorum has reached, given one value a voter.

    Of match indexes that is what may be committed; of rounds, what is confirmed.
    """
    return sorted(values, reverse=True)[len(values) // 2]
