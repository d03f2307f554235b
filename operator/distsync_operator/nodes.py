"""Calls to nodes: what each says of itself, and what the operator asks of it.

A pod is called at its own address, not by a Service: what it says is about itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from distsync.command.calls import (
    ArchiveAnswer,
    Caller,
    Identity,
    MembershipAnswer,
    Ring,
    TransferAnswer,
)
from distsync.errors import DistSyncError
from distsync.models import ClusterStatus
from distsync.models import Member as MemberView
from distsync.paths import member_path
from distsync_operator import names
from distsync_operator.errors import NodeError
from distsync_operator.model import SILENT, Member, Node, NodeState, Pod

LOOK_SECONDS = 2.0
CALL_SECONDS = 8.0
# The leader counts a member as caught up when it lacks no more entries than this (node: replica).
CAUGHT_UP_ENTRIES = 100
_STATES: Mapping[str, NodeState] = {
    "uninitialised": "uninitialised",
    "joining": "joining",
    "member": "member",
    "removed": "removed",
    "stopped": "stopped",
}

_Answer = TypeVar("_Answer")


class Nodes:
    """The nodes of one cluster, called with its secret; an async context manager."""

    def __init__(self, secret: str) -> None:
        self._look = Caller(secret=secret, deadline_seconds=LOOK_SECONDS)
        self._ask = Caller(secret=secret, deadline_seconds=CALL_SECONDS)

    async def __aenter__(self) -> Nodes:
        await self._look.__aenter__()
        await self._ask.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._look.__aexit__(*exc)
        await self._ask.__aexit__(*exc)

    async def look(self, pod: Pod) -> Node:
        """Return what the node in a pod says of itself."""
        if not pod.ip:
            return SILENT
        try:
            identity = await self._look.get(f"{_peer(pod)}/cluster/identity", Identity)
            status = await self._look.get(f"{_client(pod)}/cluster/status", ClusterStatus)
        except DistSyncError as error:
            return Node(state="refused") if error.code == "unauthorized" else SILENT
        if identity.name != pod.name or identity.member_id != status.member_id:
            return SILENT  # the address belongs to somebody else by now
        return _node(identity, status)

    async def ring(self, pod: Pod) -> tuple[int, tuple[str, ...]]:
        """Return epoch and members of the ring as the node knows it."""
        try:
            answer = await self._look.get(f"{_client(pod)}/cluster/ring", Ring)
        except DistSyncError:
            return 0, ()
        return answer.epoch, tuple(server.name for server in answer.servers)

    async def bootstrap(self, pod: Pod, cluster_id: str, members: tuple[Member, ...]) -> None:
        """Create the cluster on a node."""
        body = {"cluster_id": cluster_id, "members": [_body(member) for member in members]}
        await self._post(pod, "/cluster/bootstrap", body, Identity)

    async def add(self, pod: Pod, member: Member, config_index: int) -> None:
        """Add a learner."""
        body = {**_body(member), "expected_config_index": config_index}
        await self._post(pod, "/cluster/members", body, MembershipAnswer)

    async def promote(self, pod: Pod, member: Member, config_index: int) -> None:
        """Make a learner vote."""
        path = f"{member_path(member.id)}/promote"
        await self._post(pod, path, {"expected_config_index": config_index}, MembershipAnswer)

    async def remove(self, pod: Pod, member: Member, config_index: int) -> None:
        """Remove a member."""
        path = f"{member_path(member.id)}?expected_config_index={config_index}"
        try:
            await self._ask.delete(_peer(pod) + path, MembershipAnswer)
        except DistSyncError as error:
            raise NodeError(error.code, f"{pod.name}: {error}") from None

    async def transfer(self, pod: Pod, member: Member) -> None:
        """Hand leadership to a member."""
        await self._post(pod, "/cluster/transfer", {"target": member.id}, TransferAnswer)

    async def drain(self, pod: Pod) -> None:
        """Have a node leave the ring."""
        await self._post(pod, "/cluster/drain", {}, Identity)

    async def archive(self, pod: Pod) -> None:
        """Have a removed node start again empty."""
        await self._post(pod, "/cluster/archive", {}, ArchiveAnswer)

    async def _post(self, pod: Pod, path: str, body: object, answer: type[_Answer]) -> None:
        try:
            await self._ask.post(_peer(pod) + path, body, answer)
        except DistSyncError as error:
            raise NodeError(error.code, f"{pod.name}: {error}") from None


def _peer(pod: Pod) -> str:
    return f"http://{_host(pod)}:{names.PEER_PORT}"


def _client(pod: Pod) -> str:
    return f"http://{_host(pod)}:{names.CLIENT_PORT}"


def _host(pod: Pod) -> str:
    return f"[{pod.ip}]" if ":" in pod.ip else pod.ip


def _body(member: Member) -> dict[str, str]:
    return {
        "id": member.id,
        "name": member.name,
        "peer_url": member.peer_url,
        "client_url": member.client_url,
    }


def _node(identity: Identity, status: ClusterStatus) -> Node:
    return Node(
        state=_STATES.get(identity.state, "silent"),
        member_id=identity.member_id,
        cluster_id=identity.cluster_id or "",
        peer_url=identity.peer_url,
        client_url=identity.client_url,
        role=status.role,
        leader=identity.leader or "",
        term=status.term,
        config_index=status.config_index,
        members=tuple(_member(member, status) for member in status.members),
        version=status.version,
        draining=identity.draining,
        serving=status.serving,
        ring_epoch=status.ring_epoch,
    )


def _member(member: MemberView, status: ClusterStatus) -> Member:
    known = member.match_index
    return Member(
        id=member.id,
        name=member.name,
        voter=member.voter,
        peer_url=member.peer_url,
        client_url=member.client_url,
        silent_ms=member.last_contact_ms,
        caught_up=known is not None and known + CAUGHT_UP_ENTRIES >= status.commit_index,
    )
