"""The shell of `cluster.formation`: an empty node of a static list asks around and acts."""

from __future__ import annotations

import asyncio
import logging
import secrets

import msgspec

from distsync_node.cluster.formation import (
    CreateCluster,
    Decision,
    Identity,
    JoinCluster,
    Wait,
    decide,
)
from distsync_node.errors import DistSyncError
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.peers.wire import (
    CALL_PATH,
    BootstrapCall,
    Call,
    CallReply,
    CallRequest,
    IdentityCall,
    IdentityReply,
    MembershipCall,
    RejectedReply,
    decode_reply,
    encode,
)
from distsync_node.raft.types import ConfigOperation, Member, MemberId
from distsync_node.services.node import NodeService
from distsync_node.settings import Settings

logger = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
INTERVAL_SECONDS = 0.2
CALL_SECONDS = 5.0


class Formation:
    """Runs until this node belongs to a cluster and the cluster knows its addresses."""

    def __init__(self, settings: Settings, node: NodeService, client: PeerClient) -> None:
        self._settings = settings
        self._node = node
        self._client = client
        self._last_reason = ""

    async def run(self) -> None:
        """Form or join, then keep the cluster's record of this node's addresses right."""
        while self._node.status().state in ("uninitialised", "joining"):
            if self._settings.members and self._node.status().state == "uninitialised":
                await self._act(await self._decide())
            await asyncio.sleep(INTERVAL_SECONDS)
        await self._announce()

    async def _decide(self) -> Decision:
        own = self._own_identity()
        others = [item for item in self._settings.members if item[0] != self._settings.name]
        answers = await asyncio.gather(*(self._probe(url) for _, url in others))
        return decide(
            own,
            tuple(name for name, _ in self._settings.members),
            {name: answer for (name, _), answer in zip(others, answers, strict=True)},
            may_create=self._settings.bootstrap,
        )

    def _own_identity(self) -> Identity:
        status = self._node.status()
        return Identity(
            member=self._own_member(status.member_id),
            uninitialised=status.state == "uninitialised",
            cluster_id=status.cluster_id,
        )

    def _own_member(self, member_id: MemberId) -> Member:
        return Member(
            id=member_id,
            name=self._settings.name,
            peer_url=self._settings.advertised_peer_url,
            client_url=self._settings.advertised_client_url,
        )

    async def _call(self, url: str, request: CallRequest, timeout_seconds: float) -> CallReply:
        content = await self._client.post(
            url + CALL_PATH, encode(request), timeout_seconds=timeout_seconds
        )
        return decode_reply.decode(content)

    async def _probe(self, peer_url: str) -> Identity | None:
        own_id = self._node.status().member_id
        request = CallRequest("", own_id, MemberId(""), IdentityCall())
        try:
            reply = await self._call(peer_url, request, PROBE_SECONDS)
        except (PeerUnreachable, msgspec.MsgspecError):
            return None
        if not isinstance(reply, IdentityReply):
            return None
        return Identity(
            member=msgspec.structs.replace(reply.member, peer_url=peer_url),
            uninitialised=reply.uninitialised,
            cluster_id=reply.cluster_id,
            known_ids=reply.known_ids,
            leader=reply.leader,
        )

    async def _act(self, decision: Decision) -> None:
        match decision:
            case Wait(reason=reason):
                if reason != self._last_reason:
                    logger.info(reason)
                    self._last_reason = reason
            case CreateCluster(members=members):
                await self._create(members)
            case JoinCluster(cluster_id=cluster_id, leader=leader):
                await self._join(cluster_id, leader)

    async def _create(self, members: tuple[Member, ...]) -> None:
        """Send the genesis to every member; who misses it is reached by the leader later."""
        cluster_id = secrets.token_hex(8)
        logger.info("creating cluster %s of %d members", cluster_id, len(members))
        try:
            await self._node.bootstrap(cluster_id, members)
        except DistSyncError as error:
            logger.warning("this node cannot create the cluster: %s", error)
            return
        call = BootstrapCall(cluster_id, members)
        others = [member for member in members if member.name != self._settings.name]
        await asyncio.gather(*(self._send(member, cluster_id, call) for member in others))

    async def _join(self, cluster_id: str, leader: Member) -> None:
        own = self._own_member(self._node.status().member_id)
        await self._send(leader, cluster_id, MembershipCall(ConfigOperation.ADD_LEARNER, own, None))

    async def _send(self, to: Member, cluster_id: str, call: Call) -> None:
        request = CallRequest(cluster_id, self._node.status().member_id, to.id, call)
        try:
            reply = await self._call(to.peer_url, request, CALL_SECONDS)
        except (PeerUnreachable, msgspec.MsgspecError) as error:
            logger.warning("%s did not take %s: %s", to.name, type(call).__name__, error)
            return
        if isinstance(reply, RejectedReply):
            logger.info(
                "%s refuses %s: %s", to.name, type(call).__name__, reply.reason.name.lower()
            )

    async def _announce(self) -> None:
        """Tell the cluster when this node's name or addresses are not what it remembers."""
        while self._node.status().state == "member":
            status = self._node.status()
            known = status.configuration.member(status.member_id)
            own = self._own_member(status.member_id)
            if known is not None and (known.name, known.peer_url, known.client_url) == (
                own.name,
                own.peer_url,
                own.client_url,
            ):
                return
            if known is not None and status.leader is not None:
                try:
                    await self._node.update_member(own)
                except DistSyncError as error:
                    logger.warning("cannot announce this node's addresses yet: %s", error)
            await asyncio.sleep(INTERVAL_SECONDS)
