"""Judging administrative calls: what is in force already, what is not allowed."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from distsync_node.raft.types import ConfigOperation, Configuration, Member, MemberId
from distsync_node.replica.policy import Standing
from distsync_node.replica.types import ChangeMembership

if TYPE_CHECKING:
    from collections.abc import Mapping

    from distsync_node.raft.core import RaftCore

CAUGHT_UP_ENTRIES = 100
NEVER_MS = 1 << 40


def standings(raft: RaftCore, now_ms: int) -> dict[MemberId, Standing]:
    """Return how the leader sees every member, itself included."""
    seen = {}
    progress = raft.progress()
    for member in raft.configuration.members:
        known = progress.get(member.id)
        if member.id == raft.member_id:
            seen[member.id] = Standing(silent_ms=0, caught_up=True)
        elif known is None or known.last_contact_ms is None:
            seen[member.id] = Standing(silent_ms=NEVER_MS, caught_up=False)
        else:
            seen[member.id] = Standing(
                silent_ms=now_ms - known.last_contact_ms,
                caught_up=known.match_index + CAUGHT_UP_ENTRIES >= raft.commit_index,
            )
    return seen


def is_in_force(configuration: Configuration, event: ChangeMembership) -> bool:
    """Whether the change was made before: a repeated call answers like the first."""
    known = configuration.member(event.member.id)
    match event.operation:
        case ConfigOperation.ADD_LEARNER | ConfigOperation.UPDATE:
            return known is not None and _same_place(known, event.member)
        case ConfigOperation.PROMOTE:
            return known is not None and known.voter
        case ConfigOperation.DEMOTE:
            return known is not None and not known.voter
        case ConfigOperation.REMOVE:
            return known is None and event.member.id in configuration.removed
        case _:
            assert_never(event.operation)


def takes_a_live_name(
    configuration: Configuration,
    event: ChangeMembership,
    seen: Mapping[MemberId, Standing],
    takeover_ms: int,
) -> bool:
    """Whether the call would give away the name of a member that answers."""
    if event.operation not in (ConfigOperation.ADD_LEARNER, ConfigOperation.UPDATE):
        return False
    return any(
        other.name == event.member.name
        and other.id != event.member.id
        and seen[other.id].silent_ms < takeover_ms
        for other in configuration.members
    )


def _same_place(known: Member, wanted: Member) -> bool:
    return (known.name, known.peer_url, known.client_url) == (
        wanted.name,
        wanted.peer_url,
        wanted.client_url,
    )
