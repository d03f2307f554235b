"""Who may create a cluster, and when (the rules of identity that nodes keep too).

A cluster is created once, from nodes that *all* said, as themselves, that they have none. One node
that reports a cluster forbids it: two first configurations could have two quorums that do not meet.
The body is written down before the first node hears of it, so that an interrupted creation is
finished with the same words, to those same members that still wait for them, and to no others.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from distsync.command.calls import Identity
from distsync.command.cluster_dir import Genesis, GenesisMember


@dataclass(frozen=True, slots=True, kw_only=True)
class Creation:
    """Send `genesis` to the members of these names."""

    genesis: Genesis
    names: tuple[str, ...]


def plan_creation(
    identities: Mapping[str, Identity], written_down: Genesis | None
) -> Creation | None:
    """Decide from what every node of the cluster answered; None when there is nothing to create."""
    empty = {name: who for name, who in identities.items() if who.state == "uninitialised"}
    if not empty:
        return None
    if written_down is not None:
        unfinished = _unfinished(empty, identities, written_down)
        if unfinished:
            return Creation(genesis=written_down, names=unfinished)
    if len(empty) < len(identities):
        return None  # the others have a cluster: these ask to join it by themselves
    return Creation(genesis=_new_genesis(identities), names=tuple(identities))


def _unfinished(
    empty: Mapping[str, Identity], identities: Mapping[str, Identity], written_down: Genesis
) -> tuple[str, ...]:
    """Return who was promised this first configuration and has not heard of it.

    A member id lives and dies with its disk, so a node that is empty under an id that was written
    down has never voted. A node that was wiped has another id and is not served here.
    """
    promised = {member.id for member in written_down.members}
    clusters = {who.cluster_id for who in identities.values() if who.cluster_id is not None}
    if clusters - {written_down.cluster_id}:
        return ()
    if not clusters and promised != {who.member_id for who in empty.values()}:
        return ()  # nobody has it, and the nodes are others by now
    return tuple(name for name, who in empty.items() if who.member_id in promised)


def _new_genesis(identities: Mapping[str, Identity]) -> Genesis:
    return Genesis(
        cluster_id=uuid.uuid4().hex,
        members=tuple(
            GenesisMember(
                id=who.member_id, name=name, peer_url=who.peer_url, client_url=who.client_url
            )
            for name, who in identities.items()
        ),
    )
