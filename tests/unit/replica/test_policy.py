"""The leader keeps the number of voters odd and lets a wiped node take its name back."""

from __future__ import annotations

import pytest

from distsync_node.raft.types import (
    ConfigChange,
    ConfigOperation,
    Configuration,
    LogIndex,
    Member,
    MemberId,
)
from distsync_node.replica.policy import Standing, natural_key, next_change, wanted_voters

ALIVE = Standing(silent_ms=10, caught_up=True)
BEHIND = Standing(silent_ms=10, caught_up=False)
SILENT = Standing(silent_ms=60_000, caught_up=True)


def member(member_id: str, *, voter: bool = True, name: str = "") -> Member:
    return Member(
        id=MemberId(member_id), name=name or f"node-{member_id}", peer_url="http://x", voter=voter
    )


def change(*members: Member, ceiling: int = 7, **standings: Standing) -> ConfigChange | None:
    configuration = Configuration(index=LogIndex(1), members=members)
    return next_change(
        configuration,
        MemberId("1"),
        {m.id: standings.get(f"m{m.id}", ALIVE) for m in members},
        ceiling=ceiling,
        takeover_ms=3_000,
    )


@pytest.mark.parametrize(
    ("members", "ceiling", "voters"),
    [(1, 7, 1), (2, 7, 1), (3, 7, 3), (4, 7, 3), (5, 7, 5), (9, 7, 7), (5, 3, 3), (3, 1, 1)],
)
def test_wanted_voters_is_the_largest_odd_number_not_above_members_and_ceiling(
    members: int, ceiling: int, voters: int
) -> None:
    assert wanted_voters(members, ceiling) == voters


def test_nothing_is_done_when_all_is_well() -> None:
    assert change(member("1"), member("2"), member("3")) is None


def test_a_caught_up_learner_is_promoted_while_voters_are_missing() -> None:
    wanted = change(member("1"), member("2"), member("3", voter=False))
    assert wanted == ConfigChange(
        operation=ConfigOperation.PROMOTE, member=member("3", voter=False)
    )


def test_a_learner_that_lags_or_is_silent_is_not_promoted() -> None:
    members = (member("1"), member("2"), member("3", voter=False))
    assert change(*members, m3=BEHIND) is None
    assert change(*members, m3=SILENT) is None


def test_the_ceiling_holds() -> None:
    assert (
        change(member("1"), member("2", voter=False), member("3", voter=False), ceiling=1) is None
    )


def test_the_lowest_ordinal_is_promoted_first() -> None:
    members = [member(str(i), voter=i <= 3) for i in (1, 2, 3, 9, 10)]
    wanted = change(*members)
    assert wanted is not None
    assert wanted.member.id == "9"


def test_a_wiped_node_takes_its_name_back_once_the_old_id_is_silent() -> None:
    members = (
        member("1"),
        member("2"),
        member("3", name="node-3"),
        member("new", voter=False, name="node-3"),
    )
    assert change(*members) is None
    wanted = change(*members, m3=SILENT)
    assert wanted is not None
    assert (wanted.operation, wanted.member.id) == (ConfigOperation.REMOVE, "3")
    assert change(*members, m3=SILENT, mnew=BEHIND) is None


def test_an_old_id_goes_also_when_an_administrator_has_promoted_the_newcomer_already() -> None:
    old = member("3", voter=False, name="node-3")
    members = (member("1"), member("2"), old, member("new", name="node-3"))
    assert change(*members) is None
    wanted = change(*members, m3=SILENT)
    assert wanted == ConfigChange(operation=ConfigOperation.REMOVE, member=old)


def test_an_old_id_goes_also_when_the_newcomer_leads() -> None:
    old = member("3", voter=False, name="node-1")
    wanted = change(member("1"), member("2"), old, m3=SILENT)
    assert wanted == ConfigChange(operation=ConfigOperation.REMOVE, member=old)


def test_a_voter_too_many_is_demoted_the_silent_one_first_and_never_the_leader() -> None:
    members = tuple(member(str(i)) for i in (1, 2, 3, 4))
    wanted = change(*members)
    assert wanted is not None
    assert (wanted.operation, wanted.member.id) == (ConfigOperation.DEMOTE, "4")
    wanted = change(*members, m2=SILENT)
    assert wanted is not None
    assert wanted.member.id == "2"


def test_natural_order_of_names() -> None:
    names = ["distsync-10", "distsync-9", "distsync-0", "a"]
    assert sorted(names, key=natural_key) == ["a", "distsync-0", "distsync-9", "distsync-10"]
