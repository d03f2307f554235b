"""Who serves queues and cache, replicated: the members of the ring and its epoch.

Guarantees:

- Every change of the ring raises the epoch by one, so an epoch names one ring, on every member.
- A process serves under the incarnation it entered with. A restarted node is a new incarnation and
  enters under a new epoch; nothing that names the old one changes anything any more.
- A name is served by one member at a time, so a node whose disk was wiped keeps its keys.
- The number of virtual nodes is fixed by the first entry: it decides where every key belongs, so
  no node that is started with another number later may change it.
- `in_doubt` has every process that left without its lease being known to have ended: its member was
  removed from the cluster, or another process took its name. The leader strikes it off once the
  lease has certainly ended. When it is empty, nobody but the servers of the ring has a lease.
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
    """Take this process into the ring, in place of whoever serves its name.

    `virtual_nodes` counts in a ring that never had a server.
    """

    server: Server
    virtual_nodes: int = DEFAULT_VIRTUAL_NODES


class LeaveRing(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="L", gc=False):
    """The lease of this process has ended: take it out, or strike it off those in doubt.

    A no-op unless it is exactly this incarnation that serves or is in doubt.
    """

    name: str
    member: MemberId
    incarnation: Incarnation


RingCommand: TypeAlias = EnterRing | LeaveRing


class RingState(msgspec.Struct, frozen=True, array_like=True):
    """A ring: its epoch, and its servers sorted by name."""

    epoch: Epoch
    servers: tuple[Server, ...]
    virtual_nodes: int = DEFAULT_VIRTUAL_NODES
    in_doubt: tuple[Server, ...] = ()  # see above; a change of it is no new epoch

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
            if state.epoch == EMPTY_RING.epoch:
                state = msgspec.structs.replace(state, virtual_nodes=command.virtual_nodes)
            return _changed(state, drop=server.name, add=(server,), is_certain=False)
        case LeaveRing():
            known = state.server(command.name)
            if known is not None and _is_meant(known, command):
                return _changed(state, drop=command.name, add=(), is_certain=True)
            return _struck_off(state, command)
        case _:
            assert_never(command)


def without_member(state: RingState, removed: MemberId) -> RingState:
    """Return the ring without a member that was removed from the cluster, whatever its lease."""
    for server in state.servers:
        if server.member == removed:
            return _changed(state, drop=server.name, add=(), is_certain=False)
    return state


def _is_meant(server: Server, command: LeaveRing) -> bool:
    return (server.name, server.member, server.incarnation) == (
        command.name,
        command.member,
        command.incarnation,
    )


def _struck_off(state: RingState, command: LeaveRing) -> RingState:
    in_doubt = tuple(server for server in state.in_doubt if not _is_meant(server, command))
    if len(in_doubt) == len(state.in_doubt):
        return state
    return msgspec.structs.replace(state, in_doubt=in_doubt)


def _changed(
    state: RingState, *, drop: str, add: tuple[Server, ...], is_certain: bool
) -> RingState:
    servers = [server for server in state.servers if server.name != drop]
    left = () if is_certain else (server for server in state.servers if server.name == drop)
    back = set(add)
    return RingState(
        epoch=Epoch(state.epoch + 1),
        servers=tuple(sorted((*servers, *add), key=lambda server: server.name)),
        virtual_nodes=state.virtual_nodes,
        in_doubt=tuple(server for server in (*state.in_doubt, *left) if server not in back),
    )
