"""Configurations and the single-member changes that lead from one to the next (thesis §4.1).

Guarantees
- A change adds, removes, promotes or demotes one member at most, so the quorums of neighbouring
  configurations always share a voter.
- There is always a voter; the last one can be neither removed nor demoted.
- An id once removed never returns (design §2, Identity).
- Everything here is a pure function: the same change gives the same configuration everywhere.
"""

from __future__ import annotations

from typing import assert_never

import msgspec

from distsync_node.errors import InvariantViolation
from distsync_node.raft.types import (
    ConfigChange,
    ConfigOperation,
    Configuration,
    LogIndex,
    Member,
    MemberId,
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ConfigChange)


def encode_change(change: ConfigChange) -> bytes:
    """Return the payload of the CONFIG entry of a change."""
    return _encoder.encode(change)


def decode_change(payload: bytes) -> ConfigChange:
    """Return the change of a CONFIG entry.

    Raises: InvariantViolation, for a committed entry that cannot be read must stop the node.
    """
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError as error:
        raise InvariantViolation(f"unreadable configuration entry: {error}") from error


def is_allowed(configuration: Configuration, change: ConfigChange) -> bool:
    """Whether a change makes sense in that configuration."""
    member_id = change.member.id
    known = configuration.member(member_id)
    match change.operation:
        case ConfigOperation.ADD_LEARNER:
            return known is None and bool(member_id) and member_id not in configuration.removed
        case ConfigOperation.PROMOTE:
            return known is not None and not known.voter
        case ConfigOperation.REMOVE:
            return known is not None and not _is_last_voter(configuration, member_id)
        case ConfigOperation.DEMOTE:
            return (
                known is not None and known.voter and not _is_last_voter(configuration, member_id)
            )
        case ConfigOperation.UPDATE:
            return known is not None
        case _ as unreachable:
            assert_never(unreachable)


def apply_change(
    configuration: Configuration, change: ConfigChange, index: LogIndex
) -> Configuration:
    """Return the configuration after the change that was committed at `index`.

    Raises: InvariantViolation when the change is not allowed; it was checked when proposed, and
    no other change can have come between.
    """
    if not is_allowed(configuration, change):
        raise InvariantViolation(f"change {change} at {index} does not fit {configuration}")
    member = change.member
    match change.operation:
        case ConfigOperation.ADD_LEARNER:
            added = msgspec.structs.replace(member, voter=False)
            return _with_members(configuration, index, (*configuration.members, added))
        case ConfigOperation.PROMOTE:
            return _with_voter(configuration, index, member.id, voter=True)
        case ConfigOperation.DEMOTE:
            return _with_voter(configuration, index, member.id, voter=False)
        case ConfigOperation.REMOVE:
            return Configuration(
                index=index,
                members=tuple(m for m in configuration.members if m.id != member.id),
                removed=tuple(sorted((*configuration.removed, member.id))),
            )
        case ConfigOperation.UPDATE:
            members = tuple(
                msgspec.structs.replace(member, voter=m.voter) if m.id == member.id else m
                for m in configuration.members
            )
            return _with_members(configuration, index, members)
        case _ as unreachable:
            assert_never(unreachable)


def _is_last_voter(configuration: Configuration, member_id: MemberId) -> bool:
    return configuration.voters == (member_id,)


def _with_members(
    configuration: Configuration, index: LogIndex, members: tuple[Member, ...]
) -> Configuration:
    return Configuration(
        index=index,
        members=tuple(sorted(members, key=lambda member: member.id)),
        removed=configuration.removed,
    )


def _with_voter(
    configuration: Configuration, index: LogIndex, member_id: MemberId, *, voter: bool
) -> Configuration:
    members = tuple(
        msgspec.structs.replace(m, voter=voter) if m.id == member_id else m
        for m in configuration.members
    )
    return _with_members(configuration, index, members)
