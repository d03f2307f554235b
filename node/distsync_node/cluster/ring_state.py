"""Who serves queues and cache, replicated: the members of the ring and its epoch.

Guarantees:

- Every change of the ring raises the epoch by one, so an epoch names one ring, on every member.
- A process serves under the incarnation it entered with. A restarted node is a new incarnation and
  enters under a new epoch; nothing that names the old one changes anything any more.
- A name is served by one member at a time, so a node whose disk was wiped keeps its keys.
"""

from __future__ import annotations

import hashlib
from typing import NewType, TypeAlias, assert_never

import msgspec

from distsync_node.raft.types import MemberId
from distsync_node.ring import DEFAULT_VIRTUAL_NODES, HashRing

Epoch = NewType("Epoch", int)
Incarnation = NewType("Incarnation", int)


class Server(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One process that serves its part of the ring."""

    name: str
    member: MemberId
    incarnation: Incarnation
    weight: float = 1.0


class EnterRing(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="E", gc=False):
    """Take this process into the ring, in place of whoever serves its name."""

    server: Server


class LeaveRing(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="L", gc=False):
    """Take this process out; a no-op unless it is exactly this incarnation that serves."""

    name: str
    member: MemberId
    incarnation: Incarnation


RingCommand: TypeAlias = EnterRing | LeaveRing


class RingState(msgspec.Struct, frozen=True, array_like=True):
    """A ring: its epoch, and its servers sorted by name."""

    epoch: Epoch
    servers: tuple[Server, ...]
    virtual_nodes: int = DEFAULT_VIRTUAL_NODES

    def server(self, name: str) -> Server | None:
        """Return who serves that name."""
        return next((server for server in self.servers if server.name == name), None)

    def ring(self) -> HashRing:
        """Return the hash ring; its nodes are names."""
        return HashRing({server.name: server.weight for server in self.servers}, self.virtual_nodes)

    def hash(self) -> int:
        """Return 64 bits that are equal for equal states."""
        digest = hashlib.blake2b(msgspec.msgpack.encode(self), digest_size=8).digest()
        return int.from_bytes(digest, "big")


EMPTY_RING = RingState(epoch=Epoch(0), servers=())


def apply(state: RingState, command: RingCommand) -> RingState:
    """Return the ring after a committed command; the same object if nothing changes."""
    match command:
        case EnterRing(server=server):
            if state.server(server.name) == server:
                return state
            return _changed(state, drop=server.name, add=(server,))
        case LeaveRing():
            known = state.server(command.name)
            if known is None or (known.member, known.incarnation) != (
                command.member,
                command.incarnation,
            ):
                return state
            return _changed(state, drop=command.name, add=())
        case _:
            assert_never(command)


def without_member(state: RingState, removed: MemberId) -> RingState:
    """Return the ring without a member that was removed from the cluster."""
    for server in state.servers:
        if server.member == removed:
            return _changed(state, drop=server.name, add=())
    return state


def _changed(state: RingState, *, drop: str, add: tuple[Server, ...]) -> RingState:
    servers = [server for server in state.servers if server.name != drop]
    return RingState(
        epoch=Epoch(state.epoch + 1),
        servers=tuple(sorted((*servers, *add), key=lambda server: server.name)),
        virtual_nodes=state.virtual_nodes,
    )
