"""Calls to the node that leads, as long as it does and answers.

A call that is given up may have been acted upon. `Attempts` remembers that: what cannot be excluded
to have been done is never reported as not done.
"""

from __future__ import annotations

import asyncio
import logging

import msgspec

from distsync_node.errors import (
    AlreadyBootstrapped,
    ConfigConflict,
    DiskFull,
    DistSyncError,
    LimitReached,
    MemberRemoved,
    NoLeader,
    ShuttingDown,
    Uninitialised,
)
from distsync_node.locks.commands import Acquire, LockCommand, Upgrade
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.peers.wire import (
    COMMAND_PATH,
    COMMANDS_PATH,
    Call,
    CallReply,
    CallRequest,
    CommandCall,
    RejectedReply,
    decode_replies,
    decode_reply,
    encode,
)
from distsync_node.raft.types import MemberId
from distsync_node.replica.types import RejectReason
from distsync_node.services.forwarding import Forwarding
from distsync_node.services.runtime import Runtime, boottime_ms

logger = logging.getLogger(__name__)

# What a node says of itself when it takes no part, or is not the member that was meant.
_NOT_SERVING = frozenset(
    {
        RejectReason.UNINITIALISED,
        RejectReason.REMOVED,
        RejectReason.STOPPED,
        RejectReason.NOT_LISTED,
    }
)

# What trying again does not change.
FINAL_REASONS = frozenset(RejectReason) - {
    RejectReason.NOT_LEADER,
    RejectReason.LEADERSHIP_LOST,
    RejectReason.OVERLOADED,
}


class Attempts:
    """What is known of a command while it is tried: whether it may have been proposed, where its
    wait stands, and since when nothing came of trying."""

    __slots__ = ("attempt", "is_parked", "may_be_proposed", "patience_ms", "stuck_since_ms")

    def __init__(self, patience_ms: int) -> None:
        self.patience_ms = patience_ms
        self.may_be_proposed = False
        self.attempt: int | None = None
        self.is_parked = False
        self.stuck_since_ms: int | None = None

    def begin(self) -> None:
        """A leader is asked."""
        self.is_parked = False

    def parked(self, attempt: int) -> None:
        """The command waits in a queue, as that attempt."""
        self.attempt = attempt
        self.is_parked = True
        self.stuck_since_ms = None

    def stuck_until_ms(self, since_ms: int) -> int:
        """Nothing has come of trying since then, or since before; return when to give up."""
        if self.stuck_since_ms is None:
            self.stuck_since_ms = since_ms
        return self.stuck_since_ms + self.patience_ms


class LeaderCalls:
    """The way to the leader. Once `are_over`, nothing is waited for any more: this node stops."""

    def __init__(self, client: PeerClient) -> None:
        self._client = client
        self._forwarding: Forwarding | None = None
        self.are_over = False

    def attach(self, runtime: Runtime) -> None:
        """The data directory is open."""
        shared = self._client.shared(COMMANDS_PATH, decode_replies)
        self._forwarding = Forwarding(runtime, shared)

    def end(self) -> None:
        """Wait for nothing any more: this node stops."""
        self.are_over = True
        if self._forwarding is not None:
            self._forwarding.end()

    async def close(self) -> None:
        """End what is in flight."""
        if self._forwarding is not None:
            await self._forwarding.close()

    def check_go_on(self) -> None:
        """Raise ShuttingDown if this node stops."""
        if self.are_over:
            raise ShuttingDown("this node stops; ask another one")

    async def run(
        self,
        runtime: Runtime,
        leader: MemberId,
        command: LockCommand,
        deadline_ms: int,
        attempts: Attempts,
    ) -> CallReply | None:
        """Have the leader run a command. None: no answer."""
        waits = isinstance(command, Acquire | Upgrade) and command.wait_ms
        if waits or self._forwarding is None:
            return await self.ask(
                runtime, leader, CommandCall(command), COMMAND_PATH, deadline_ms, attempts
            )
        try:
            return _as_asked(await self._forwarding.run(leader, command, deadline_ms))
        except PeerUnreachable as error:
            attempts.may_be_proposed |= error.sent
            return None

    async def ask(
        self,
        runtime: Runtime,
        leader: MemberId,
        call: Call,
        path: str,
        deadline_ms: int,
        attempts: Attempts,
    ) -> CallReply | None:
        """POST a call to the leader; give up when the leader changes. None: no answer.

        That the one asked is no member, or stops, says nothing of this node: it is not the leader.
        """
        member = runtime.replica.configuration.member(leader)
        if member is None or not member.peer_url:
            return None
        replica = runtime.replica
        body = encode(CallRequest(replica.cluster_id, replica.member_id, leader, call))
        request = asyncio.ensure_future(
            self._client.post(
                member.peer_url + path,
                body,
                timeout_seconds=max(1, deadline_ms - boottime_ms()) / 1_000,
                on_attempt=attempts.parked,
            )
        )
        try:
            await self._answer_or_other_leader(runtime, leader, request, attempts)
        finally:
            # Where the request is given up its connection ends, and with it the wait over there.
            request.cancel()
            await asyncio.wait((request,))
        if request.cancelled():
            attempts.may_be_proposed = True
            return None
        try:
            reply = decode_reply.decode(request.result())
        except PeerUnreachable as error:
            attempts.may_be_proposed |= error.sent
            return None
        except msgspec.MsgspecError:
            logger.warning("the leader %s answered in another format", leader)
            attempts.may_be_proposed = True
            return None
        return _as_asked(reply)

    async def _answer_or_other_leader(
        self,
        runtime: Runtime,
        leader: MemberId,
        request: asyncio.Future[bytes],
        attempts: Attempts,
    ) -> None:
        """Wait for the answer, but neither at a node that leads no longer nor, cut off from a
        leader or from its answers, for as long as the command itself may wait."""
        since_ms = boottime_ms()
        while not request.done() and not self.are_over:
            now_ms = boottime_ms()
            current = runtime.replica.leader
            if current is not None and current != leader:
                return
            if current is not None and attempts.is_parked:
                since_ms = now_ms  # all is well
            if now_ms - since_ms >= attempts.patience_ms:
                attempts.stuck_until_ms(since_ms)
                return
            watcher = runtime.leader_watcher()
            try:
                await asyncio.wait(
                    (request, watcher),
                    timeout=attempts.patience_ms / 1_000,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                watcher.cancel()


def _as_asked(reply: CallReply) -> CallReply:
    """Return what it says of the leader, as this node has to take it."""
    if isinstance(reply, RejectedReply) and reply.reason in _NOT_SERVING:
        return RejectedReply(RejectReason.NOT_LEADER, None)
    return reply


def error_of(reason: RejectReason) -> DistSyncError:
    """Return the error a user sees for a rejection."""
    match reason:
        case RejectReason.OVERLOADED:
            return LimitReached("too many requests are waiting", limit="max_pending")
        case RejectReason.DISK_FULL:
            return DiskFull("the disk of the leader is full")
        case RejectReason.UNINITIALISED:
            return Uninitialised("this node belongs to no cluster yet")
        case RejectReason.REMOVED:
            return MemberRemoved("this node was removed from its cluster")
        case RejectReason.STOPPED:
            return ShuttingDown("this node has stopped; see its log")
        case RejectReason.ALREADY_BOOTSTRAPPED:
            return AlreadyBootstrapped("this node belongs to another cluster")
        case RejectReason.NOT_LISTED:
            return ConfigConflict("the list of members does not name this node's id")
        case RejectReason.CONFIG_CONFLICT:
            return ConfigConflict(
                "the membership is not what was expected, or another change is under way"
            )
        case RejectReason.NAME_TAKEN:
            return ConfigConflict("a member of that name is alive")
        case RejectReason.NOT_CAUGHT_UP:
            return ConfigConflict("the learner has not caught up yet; ask again")
        case _:
            return NoLeader("this node does not lead; nothing was proposed")
