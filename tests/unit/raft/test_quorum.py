"""Counting votes and matches."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsync_node.raft.quorum import Tally, quorum_size, reached_by_quorum, tally


@pytest.mark.parametrize(("voters", "size"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (7, 4)])
def test_a_quorum_is_more_than_half(voters: int, size: int) -> None:
    assert quorum_size(voters) == size


@pytest.mark.parametrize(
    ("voters", "granted", "refused", "standing"),
    [
        ("1", "1", "", Tally.WON),
        ("123", "1", "", Tally.PENDING),
        ("123", "12", "", Tally.WON),
        ("123", "1", "2", Tally.PENDING),
        ("123", "1", "23", Tally.LOST),
        ("12", "1", "2", Tally.LOST),
        ("1234", "12", "", Tally.PENDING),
        ("1234", "12", "34", Tally.LOST),
        ("1234", "123", "", Tally.WON),
        ("", "1", "", Tally.LOST),
    ],
)
def test_a_vote_is_judged(voters: str, granted: str, refused: str, standing: Tally) -> None:
    assert tally(tuple(voters), set(granted), set(refused)) is standing


def test_answers_of_others_than_voters_do_not_count() -> None:
    assert tally(("1", "2", "3"), {"1", "8", "9"}, set()) is Tally.PENDING


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_what_a_quorum_reached_is_the_largest_such_number(values: list[int]) -> None:
    reached = reached_by_quorum(values)
    assert sum(value >= reached for value in values) >= quorum_size(len(values))
    assert sum(value >= reached + 1 for value in values) < quorum_size(len(values))
