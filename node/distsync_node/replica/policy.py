"""What a leader does about its membership by itself, one change at a time.

- The number of voters is the largest odd one not above the number of members, and at most the
  configured ceiling (design: `voters`).
- A node whose disk was wiped returns under a new id and its old name. Once the newcomer has caught
  up and the old id has been silent long enough, the old id is removed.

Every change here is one that keeps a quorum of the members that answer; a member that is silent is
never promoted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from distsync_node.raft.types import (
    ConfigChange,
    ConfigOperation,
    Configuration,
    Member,
    MemberId,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How the leader sees another member."""

    silent_ms: int  # since its last message
    caught_up: bool


def wanted_voters(members: int, ceiling: int) -> int:
    """Return the number of voters for that many members: odd, and at most the ceiling."""
    wanted = max(1, min(members, ceiling))
    return wanted if wanted % 2 else wanted - 1


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which `node-10` comes after `node-9`."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )


def next_change(
    configuration: Configuration,
    leader: MemberId,
    standings: Mapping[MemberId, Standing],
    *,
    ceiling: int,
    takeover_ms: int,
) -> ConfigChange | None:
    """Return the next change the leader should propose, or None."""
    return (
        _takeover(configuration, leader, standings, takeover_ms)
        or _promotion(configuration, standings, ceiling, takeover_ms)
        or _demotion(configuration, leader, standings, ceiling)
    )


def _takeover(
    configuration: Configuration,
    leader: MemberId,
    standings: Mapping[MemberId, Standing],
    takeover_ms: int,
) -> ConfigChange | None:
    """Remove an id whose node has come back under another one.

    Whoever is silent goes, whoever of that name answers stays; what votes does not tell them apart,
    as an administrator may have promoted the newcomer by then.
    """
    for newcomer in configuration.members:
        standing = standings.get(newcomer.id)
        if newcomer.id != leader and (
            standing is None or not standing.caught_up or standing.silent_ms >= takeover_ms
        ):
            continue
        for old in configuration.members:
            if old.name != newcomer.name or old.id in (newcomer.id, leader):
                continue
            if standings[old.id].silent_ms >= takeover_ms:
                return ConfigChange(operation=ConfigOperation.REMOVE, member=old)
    return None


def _promotion(
    configuration: Configuration,
    standings: Mapping[MemberId, Standing],
    ceiling: int,
    takeover_ms: int,
) -> ConfigChange | None:
    names = [member.name for member in configuration.members]
    if len(configuration.voters) >= wanted_voters(len(set(names)), ceiling):
        return None
    candidates = [
        member
        for member in configuration.members
        if not member.voter
        and names.count(member.name) == 1
        and (standing := standings.get(member.id)) is not None
        and standing.caught_up
        and standing.silent_ms < takeover_ms
    ]
    if not candidates:
        return None
    chosen = min(candidates, key=lambda member: natural_key(member.name))
    return ConfigChange(operation=ConfigOperation.PROMOTE, member=chosen)


def _demotion(
    configuration: Configuration,
    leader: MemberId,
    standings: Mapping[MemberId, Standing],
    ceiling: int,
) -> ConfigChange | None:
    voters = [member for member in configuration.members if member.voter]
    if len(voters) <= wanted_voters(len(configuration.members), ceiling):
        return None
    # The most silent first: a voter that does not answer only weakens the quorum.
    chosen: Member = max(
        (member for member in voters if member.id != leader),
        key=lambda member: (standings[member.id].silent_ms // 1_000, natural_key(member.name)),
    )
    return ConfigChange(operation=ConfigOperation.DEMOTE, member=chosen)
