"""Lock commands that do not wait, on their way to the node that leads.

Guarantee: a command ends when its leader answers, when another member leads, at its deadline, or
when this node stops; whether it may have been proposed is always known (`PeerUnreachable.sent`).
"""

from __future__ import annotations

import asyncio
from typing import Final

from distsync_node.locks.commands import LockCommand
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.peers.sharing import SharedRequests
from distsync_node.peers.wire import CallReply, CommandRequest, encode
from distsync_node.raft.types import MemberId
from distsync_node.services.runtime import Runtime, boottime_ms

ANSWER_SECONDS: Final = 0.05  # it may take; a command with less left would only leave a doubt


class Forwarding:
    """The way of commands to one leader at a time, the newest that was named."""

    def __init__(self, runtime: Runtime, shared: SharedRequests[CallReply]) -> None:
        """`shared` is its own from now on: nobody else calls or closes it."""
        self._runtime = runtime
        self._shared = shared
        self._leader: MemberId | None = None
        self._running = 0
        self._watcher: asyncio.Future[None] | None = None

    async def run(self, leader: MemberId, command: LockCommand, deadline_ms: int) -> CallReply:
        """Have the leader run a command.

        Raises:
            PeerUnreachable: it did not answer, or leads no longer.
        """
        replica = self._runtime.replica
        member = replica.configuration.member(leader)
        left_seconds = (deadline_ms - boottime_ms()) / 1_000
        if left_seconds < ANSWER_SECONDS:
            raise PeerUnreachable("there is no time left for an answer", sent=False)
        if leader != self._leader:
            self.end()
            self._leader = leader
        self._shared.address("" if member is None else member.peer_url)
        request = CommandRequest(replica.cluster_id, replica.member_id, leader, command)
        self._running += 1
        self._watch()
        try:
            return await self._shared.call(encode(request), left_seconds)
        finally:
            self._running -= 1

    def end(self) -> None:
        """Whoever was asked leads no longer, or this node stops: end what waits for an answer."""
        self._shared.give_up("it leads no longer, or this node stops")

    async def close(self) -> None:
        """End what is in flight, and the connections."""
        await self._shared.close()

    def _watch(self) -> None:
        """Look whether there is another leader, while anything waits for this one."""
        if self._watcher is None:
            self._watcher = self._runtime.leader_watcher()
            self._watcher.add_done_callback(self._may_have_changed)

    def _may_have_changed(self, _: asyncio.Future[None]) -> None:
        self._watcher = None
        if self._running and self._runtime.replica.leader in (None, self._leader):
            self._watch()
        elif self._running:
            self.end()
