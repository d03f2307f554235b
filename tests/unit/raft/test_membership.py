"""Configurations and the single-member changes between them."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distsync_node.errors import InvariantViolation
from distsync_node.raft.membership import apply_change, decode_change, encode_change, is_allowed
from distsync_node.raft.quorum import quorum_size
from distsync_node.raft.types import (
    ConfigChange,
    ConfigOperation,
    Configuration,
    LogIndex,
    Member,
    MemberId,
)
from unit.raft.cluster import configuration, member

ADD, PROMOTE = ConfigOperation.ADD_LEARNER, ConfigOperation.PROMOTE
REMOVE, UPDATE, DEMOTE = ConfigOperation.REMOVE, ConfigOperation.UPDATE, ConfigOperation.DEMOTE


def change(operation: ConfigOperation, member_id: str) -> ConfigChange:
    return ConfigChange(operation, member(member_id))


def after(config: Configuration, *changes: ConfigChange) -> Configuration:
    for index, each in enumerate(changes, start=config.index + 1):
        config = apply_change(config, each, LogIndex(index))
    return config


def test_a_new_member_starts_as_learner_whatever_it_says() -> None:
    config = after(configuration("12"), change(ADD, "0"))
    assert config.voters == ("1", "2")
    assert config.learners == ("0",)
    assert [m.id for m in config.members] == ["0", "1", "2"]
    assert config.index == 2


def test_promotion_and_demotion_change_the_vote_only() -> None:
    start = configuration("12", "3")
    promoted = after(start, change(PROMOTE, "3"))
    assert promoted.voters == ("1", "2", "3")
    assert after(promoted, change(DEMOTE, "3")).members == start.members


def test_a_removed_id_never_returns() -> None:
    config = after(configuration("123"), change(REMOVE, "2"))
    assert config.voters == ("1", "3")
    assert config.removed == ("2",)
    assert not is_allowed(config, change(ADD, "2"))
    assert after(config, change(REMOVE, "1")).removed == ("1", "2")


def test_an_update_keeps_the_vote() -> None:
    moved = Member(MemberId("2"), "elsewhere", "http://new:1", "http://new:2", voter=True)
    config = after(configuration("1", "2"), ConfigChange(UPDATE, moved))
    found = config.member(MemberId("2"))
    assert found is not None
    assert (found.name, found.peer_url, found.voter) == ("elsewhere", "http://new:1", False)


@pytest.mark.parametrize(
    ("operation", "target"),
    [
        (ADD, "1"),
        (ADD, "2"),
        (ADD, ""),
        (PROMOTE, "1"),
        (PROMOTE, "9"),
        (REMOVE, "1"),
        (REMOVE, "9"),
        (DEMOTE, "1"),
        (DEMOTE, "2"),
        (DEMOTE, "9"),
        (UPDATE, "9"),
    ],
)
def test_what_makes_no_sense_is_not_allowed(operation: ConfigOperation, target: str) -> None:
    config = configuration("1", "2")
    assert not is_allowed(config, change(operation, target))
    with pytest.raises(InvariantViolation):
        apply_change(config, change(operation, target), LogIndex(2))


def test_a_change_survives_the_wire() -> None:
    each = change(PROMOTE, "3")
    assert decode_change(encode_change(each)) == each


def test_an_unreadable_change_stops_the_node() -> None:
    with pytest.raises(InvariantViolation):
        decode_change(b"\xc1")


CHANGES = st.lists(
    st.tuples(st.sampled_from(list(ConfigOperation)), st.sampled_from("12345")), max_size=30
)


@given(CHANGES)
def test_quorums_of_neighbouring_configurations_always_meet(
    changes: list[tuple[ConfigOperation, str]],
) -> None:
    config = configuration("123")
    for operation, target in changes:
        each = change(operation, target)
        if not is_allowed(config, each):
            continue
        following = apply_change(config, each, LogIndex(config.index + 1))
        assert following.voters
        assert not {m.id for m in following.members} & set(following.removed)
        for old in combinations(config.voters, quorum_size(len(config.voters))):
            for new in combinations(following.voters, quorum_size(len(following.voters))):
                assert set(old) & set(new)
        config = following
