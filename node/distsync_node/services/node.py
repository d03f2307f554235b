"""The node behind its HTTP endpoints: commands through the leader, wherever it is.

A command is retried under its own key until its deadline, so a change of leader costs time, not
certainty: what is not known to have failed is never reported as failed (`OutcomeUnknown`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Literal, assert_never

import msgspec

from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import (
    AlreadyBootstrapped,
    ConfigConflict,
    DiskFull,
    DistSyncError,
    LimitReached,
    MemberRemoved,
    NoLeader,
    OutcomeUnknown,
    ShuttingDown,
    Uninitialised,
)
from distsync_node.locks.commands import Acquire, Cancel, LockCommand, RequestKey, Upgrade
from distsync_node.locks.machine import LockMachine
from distsync_node.peers.client import PeerClient, PeerUnreachable
from distsync_node.peers.inbound import Respond
from distsync_node.peers.wire import (
    CALL_PATH,
    COMMAND_PATH,
    BootstrapCall,
    Call,
    CallReply,
    CallRequest,
    CommandCall,
    ConfigurationReply,
    IdentityCall,
    IdentityReply,
    MembershipCall,
    OutcomeReply,
    ReadIndexCall,
    ReadIndexReply,
    RejectedReply,
    TransferCall,
    decode_reply,
    encode,
)
from distsync_node.raft.types import (
    ConfigOperation,
    Configuration,
    LogIndex,
    Member,
    MemberId,
    Role,
)
from distsync_node.replica.core import Replica
from distsync_node.replica.types import (
    AdminDone,
    AwaitApplied,
    Bootstrap,
    ChangeMembership,
    Envelope,
    ReadAt,
    Rejected,
    RejectReason,
    Reply,
    SubmitRead,
    Transfer,
)
from distsync_node.services.interface import CommandReply, NodeStatus, PeerProgress
from distsync_node.services.runtime import Runtime, boottime_ms

logger = logging.getLogger(__name__)

ADMIN_TIMEOUT_MS = 5_000
LEADER_POLL_SECONDS = 0.05

_RoleName = Literal["leader", "follower", "candidate", "learner"]


class _Attempts:
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


class NodeService:
    """Implements `services.interface.Node` on a runtime."""

    def __init__(self, name: str, client: PeerClient) -> None:
        self._name = name
        self._client = client
        self._runtime: Runtime | None = None
        self._ring = RingView()
        self._background: set[asyncio.Task[None]] = set()
        self._ends_requests = False
        self.draining = False

    def attach(self, runtime: Runtime) -> None:
        """The data directory is open: begin to serve."""
        self._runtime = runtime

    @property
    def runtime(self) -> Runtime:
        """The runtime, once the data directory is open."""
        if self._runtime is None:
            raise Uninitialised("this node is still reading its data directory")
        return self._runtime

    def end_requests(self) -> None:
        """Answer every request now, as it stands, and refuse new ones: this node is about to stop.

        A client asks another node then, under the same request id where the outcome is unknown.
        """
        self._ends_requests = True
        if self._runtime is not None:
            self._runtime.end_calls()

    async def close(self) -> None:
        """End what still runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    # --- Commands -------------------------------------------------------------------------------

    async def submit(self, command: LockCommand, *, timeout_ms: int) -> CommandReply:
        """See `interface.Node.submit`."""
        self._check_goes_on()
        runtime = self.runtime
        attempts = _Attempts(timeout_ms)
        wait_ms = command.wait_ms if isinstance(command, Acquire | Upgrade) else 0
        deadline_ms = boottime_ms() + timeout_ms + wait_ms
        try:
            while True:
                result = await self._try_once(runtime, command, attempts, deadline_ms)
                if isinstance(result, CommandReply):
                    return result
                await self._pause_or_raise(runtime, result, attempts, deadline_ms)
        except asyncio.CancelledError:
            if wait_ms and attempts.attempt is not None and isinstance(command, Acquire | Upgrade):
                self._cancel_in_background(command.key, attempts.attempt)
            raise

    async def _try_once(
        self, runtime: Runtime, command: LockCommand, attempts: _Attempts, deadline_ms: int
    ) -> CommandReply | RejectReason:
        replica = runtime.replica
        leader = replica.leader
        attempts.begin()
        if leader == replica.member_id or replica.raft is None or replica.state != "member":
            return await self._try_here(runtime, command, attempts, deadline_ms)
        if leader is None:
            return RejectReason.NOT_LEADER
        return await self._try_there(runtime, leader, command, attempts, deadline_ms)

    async def _try_here(
        self, runtime: Runtime, command: LockCommand, attempts: _Attempts, deadline_ms: int
    ) -> CommandReply | RejectReason:
        final = await runtime.run(command, deadline_ms=deadline_ms, on_parked=attempts.parked)
        if isinstance(final, Reply):
            return CommandReply(outcome=final.outcome, remaining_ms=final.remaining_ms)
        if not isinstance(final, Rejected):
            raise TypeError(f"a command was answered by {final}")
        if final.reason is RejectReason.LEADERSHIP_LOST:
            attempts.may_be_proposed = True
        return final.reason

    async def _try_there(
        self,
        runtime: Runtime,
        leader: MemberId,
        command: LockCommand,
        attempts: _Attempts,
        deadline_ms: int,
    ) -> CommandReply | RejectReason:
        reply = await self._ask_leader(
            runtime, leader, CommandCall(command), COMMAND_PATH, deadline_ms, attempts
        )
        if isinstance(reply, OutcomeReply):
            return CommandReply(outcome=reply.outcome, remaining_ms=reply.remaining_ms)
        if isinstance(reply, RejectedReply):
            if reply.reason is RejectReason.LEADERSHIP_LOST:
                attempts.may_be_proposed = True
            return reply.reason
        return RejectReason.NOT_LEADER

    async def _pause_or_raise(
        self, runtime: Runtime, reason: RejectReason, attempts: _Attempts, deadline_ms: int
    ) -> None:
        """Wait for a better moment, or say why there is none."""
        if self._ends_requests and attempts.may_be_proposed:
            raise OutcomeUnknown("this node stops; ask another one with the same request_id")
        if self._ends_requests:
            raise ShuttingDown("this node stops; nothing was proposed")
        now_ms = boottime_ms()
        give_up_at_ms = min(deadline_ms, attempts.stuck_until_ms(now_ms))
        out_of_time = now_ms >= give_up_at_ms
        if reason is RejectReason.DISK_FULL and not attempts.may_be_proposed:
            raise DiskFull("the disk of the leader is full; free space, or wait for another leader")
        if reason in (
            RejectReason.NOT_LEADER,
            RejectReason.LEADERSHIP_LOST,
            RejectReason.DISK_FULL,
        ):
            if out_of_time and attempts.may_be_proposed:
                raise OutcomeUnknown(
                    "no outcome in time; retry with the same request_id to learn it"
                )
            if out_of_time:
                raise NoLeader("no leader answered in time; nothing was proposed")
            remaining_seconds = (give_up_at_ms - now_ms) / 1_000
            await runtime.leader_change(min(LEADER_POLL_SECONDS, remaining_seconds))
            return
        if attempts.may_be_proposed:
            raise OutcomeUnknown("no outcome; retry with the same request_id to learn it")
        raise _error(reason)

    def _cancel_in_background(self, key: RequestKey, attempt: int) -> None:
        """The client is gone and so may be the leader that knew it: tell whoever leads now."""

        async def cancel() -> None:
            with contextlib.suppress(DistSyncError):
                await self.submit(Cancel(key=key, attempt=attempt), timeout_ms=ADMIN_TIMEOUT_MS)

        if not self._ends_requests:
            self._spawn(cancel())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _ask_leader(
        self,
        runtime: Runtime,
        leader: MemberId,
        call: Call,
        path: str,
        deadline_ms: int,
        attempts: _Attempts,
    ) -> CallReply | None:
        """POST a call to the leader; give up when the leader changes. None: no answer.

        That the one asked is no member, or stops, says nothing of this node: it is not the leader.
        """
        member = runtime.replica.configuration.member(leader)
        if member is None or not member.peer_url:
            return None
        body = encode(CallRequest(runtime.replica.cluster_id, leader, call))
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
        if isinstance(reply, RejectedReply) and reply.reason in _NOT_SERVING:
            return RejectedReply(RejectReason.NOT_LEADER, None)
        return reply

    async def _answer_or_other_leader(
        self,
        runtime: Runtime,
        leader: MemberId,
        request: asyncio.Future[bytes],
        attempts: _Attempts,
    ) -> None:
        """Wait for the answer, but neither at a node that leads no longer nor, cut off from a
        leader or from its answers, for as long as the command itself may wait."""
        since_ms = boottime_ms()
        while not request.done() and not self._ends_requests:
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

    # --- Calls from other nodes -----------------------------------------------------------------

    def receive(self, envelope: Envelope, respond: Respond) -> None:
        """Take an envelope of another node."""
        self.runtime.receive(envelope, respond)

    async def answer_call(
        self, request: CallRequest, on_parked: Callable[[int], object] | None = None
    ) -> CallReply:
        """Answer another node's call as the leader, or say that this is not the leader."""
        runtime = self.runtime
        replica = runtime.replica
        call = request.call
        if isinstance(call, IdentityCall):
            return self._identity(replica)
        if request.to != replica.member_id:
            return RejectedReply(RejectReason.NOT_LISTED, None)
        if isinstance(call, BootstrapCall):
            return await self._bootstrap_here(runtime, call)
        if request.cluster_id != replica.cluster_id or self._ends_requests:
            return RejectedReply(RejectReason.NOT_LEADER, None)
        match call:
            case CommandCall(command=command):
                final = await runtime.run(command, on_parked=on_parked)
            case ReadIndexCall():
                final = await runtime.ask(lambda ref: SubmitRead(now_ms=boottime_ms(), ref=ref))
            case MembershipCall():
                final = await self._change_here(runtime, call)
            case TransferCall(target=target):
                if not replica.is_ready_leader:
                    return RejectedReply(RejectReason.NOT_LEADER, replica.leader)
                runtime.step(Transfer(now_ms=boottime_ms(), target=target))
                return ConfigurationReply(replica.configuration)
            case _:
                assert_never(call)
        match final:
            case Reply():
                return OutcomeReply(final.outcome, final.remaining_ms)
            case Rejected():
                return RejectedReply(final.reason, final.leader)
            case ReadAt():
                raft = replica.raft
                return ReadIndexReply(raft.applied_index if raft is not None else LogIndex(0))
            case AdminDone():
                return ConfigurationReply(final.configuration)

    def _identity(self, replica: Replica) -> IdentityReply:
        leader = self.status().leader
        return IdentityReply(
            member=Member(id=replica.member_id, name=self._name, peer_url=""),
            uninitialised=replica.state == "uninitialised",
            cluster_id=replica.cluster_id or None,
            known_ids=tuple(member.id for member in replica.configuration.members),
            leader=leader,
        )

    async def _bootstrap_here(self, runtime: Runtime, call: BootstrapCall) -> CallReply:
        final = await runtime.ask(
            lambda ref: Bootstrap(
                now_ms=boottime_ms(), ref=ref, cluster_id=call.cluster_id, members=call.members
            )
        )
        if isinstance(final, AdminDone):
            return ConfigurationReply(final.configuration)
        reason = final.reason if isinstance(final, Rejected) else RejectReason.STOPPED
        return RejectedReply(reason, None)

    async def _change_here(
        self, runtime: Runtime, call: MembershipCall
    ) -> Reply | Rejected | ReadAt | AdminDone:
        return await runtime.ask(
            lambda ref: ChangeMembership(
                now_ms=boottime_ms(),
                ref=ref,
                operation=call.operation,
                member=call.member,
                expected_config_index=call.expected_config_index,
            )
        )

    # --- Reads ----------------------------------------------------------------------------------

    async def read_barrier(self, *, timeout_ms: int) -> None:
        """See `interface.Node.read_barrier`."""
        self._check_goes_on()
        runtime = self.runtime
        deadline_ms = boottime_ms() + timeout_ms
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while True:
                    reply = await self._call_leader(ReadIndexCall(), deadline_ms)
                    if isinstance(reply, ReadIndexReply):
                        await self._await_applied(runtime, reply.index)
                        return
                    self._check_goes_on()
                    if isinstance(reply, RejectedReply) and reply.reason in _FINAL_REASONS:
                        raise _error(reply.reason)
                    await runtime.leader_change(LEADER_POLL_SECONDS)
        except TimeoutError:
            raise NoLeader("no leader confirmed the read in time") from None

    def _check_goes_on(self) -> None:
        if self._ends_requests:
            raise ShuttingDown("this node stops; ask another one")

    async def _await_applied(self, runtime: Runtime, index: LogIndex) -> None:
        final = await runtime.ask(
            lambda ref: AwaitApplied(now_ms=boottime_ms(), ref=ref, index=index)
        )
        if isinstance(final, Rejected):
            self._check_goes_on()
            raise _error(final.reason)

    async def _call_leader(self, call: Call, deadline_ms: int) -> CallReply | None:
        """Ask whoever leads, here or elsewhere; None if nobody answered."""
        runtime = self.runtime
        replica = runtime.replica
        leader = replica.leader
        if leader == replica.member_id or replica.raft is None or replica.state != "member":
            return await self.answer_call(CallRequest(replica.cluster_id, replica.member_id, call))
        if leader is None:
            return None
        attempts = _Attempts(ADMIN_TIMEOUT_MS)
        return await self._ask_leader(runtime, leader, call, CALL_PATH, deadline_ms, attempts)

    @property
    def machine(self) -> LockMachine:
        """See `interface.Node.machine`."""
        return self.runtime.replica.machine

    def leader_time_ms(self) -> int:
        """See `interface.Node.leader_time_ms`."""
        return self.runtime.replica.clock.read(boottime_ms())

    async def watch(self, name: str) -> AsyncIterator[None]:
        """See `interface.Node.watch`."""
        runtime = self.runtime
        event = runtime.watch(name)
        try:
            while True:
                event.clear()
                yield
                await event.wait()
        finally:
            runtime.unwatch(name, event)

    def leader_client_url(self) -> str | None:
        """See `interface.Node.leader_client_url`."""
        if self._runtime is None:
            return None
        replica = self._runtime.replica
        leader = replica.leader
        member = replica.configuration.member(leader) if leader is not None else None
        return member.client_url if member is not None and member.client_url else None

    def status(self) -> NodeStatus:
        """See `interface.Node.status`."""
        if self._runtime is None:
            return NodeStatus(
                node=self._name,
                member_id=MemberId(""),
                state="uninitialised",
                role="follower",
                leader=None,
                term=0,
                commit_index=0,
                applied_index=0,
                cluster_id=None,
                cluster_version=0,
                ready=False,
                disk_full=False,
                configuration=Configuration(index=LogIndex(0), members=()),
                progress={},
            )
        return self._status(self._runtime)

    def _status(self, runtime: Runtime) -> NodeStatus:
        replica = runtime.replica
        raft = replica.raft
        configuration = replica.configuration
        leader = configuration.member(replica.leader) if replica.leader is not None else None
        now_ms = boottime_ms()
        progress = {}
        if raft is not None and raft.role is Role.LEADER:
            progress = {
                member_id: PeerProgress(
                    match_index=known.match_index,
                    state=str(known.state),
                    last_contact_ms=(
                        None if known.last_contact_ms is None else now_ms - known.last_contact_ms
                    ),
                )
                for member_id, known in raft.progress().items()
            }
        return NodeStatus(
            node=self._name,
            member_id=replica.member_id,
            state=replica.state,
            role=self._role(replica.member_id, configuration, raft.role if raft else Role.FOLLOWER),
            leader=leader,
            term=raft.term if raft is not None else 0,
            commit_index=raft.commit_index if raft is not None else 0,
            applied_index=raft.applied_index if raft is not None else 0,
            cluster_id=replica.cluster_id or None,
            cluster_version=replica.cluster_version,
            ready=replica.state == "member" and leader is not None and not self.draining,
            disk_full=replica.disk_full,
            configuration=configuration,
            progress=progress,
            leader_changes=runtime.leader_changes,
        )

    @staticmethod
    def _role(member_id: MemberId, configuration: Configuration, role: Role) -> _RoleName:
        if role is Role.LEADER:
            return "leader"
        if member_id not in configuration.voters:
            return "learner"
        return "follower" if role is Role.FOLLOWER else "candidate"

    def ring(self) -> RingView:
        """See `interface.Node.ring`."""
        if self._runtime is not None:
            self._ring.adopt(self._runtime.replica.ring)
        return self._ring

    # --- Administration -------------------------------------------------------------------------

    async def bootstrap(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        """See `interface.Node.bootstrap`."""
        reply = await self._bootstrap_here(self.runtime, BootstrapCall(cluster_id, members))
        if isinstance(reply, RejectedReply):
            raise _error(reply.reason)

    async def add_member(
        self, member: Member, expected_config_index: LogIndex | None
    ) -> Configuration:
        """See `interface.Node.add_member`."""
        return await self._change(ConfigOperation.ADD_LEARNER, member, expected_config_index)

    async def update_member(self, member: Member) -> Configuration:
        """Tell the cluster new addresses of a member."""
        return await self._change(ConfigOperation.UPDATE, member, None)

    async def promote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """See `interface.Node.promote_member`."""
        return await self._change(ConfigOperation.PROMOTE, _by_id(member_id), expected_config_index)

    async def demote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """See `interface.Node.demote_member`."""
        return await self._change(ConfigOperation.DEMOTE, _by_id(member_id), expected_config_index)

    async def remove_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        """See `interface.Node.remove_member`."""
        return await self._change(ConfigOperation.REMOVE, _by_id(member_id), expected_config_index)

    async def _change(
        self, operation: ConfigOperation, member: Member, expected: LogIndex | None
    ) -> Configuration:
        """Propose a change through the leader. A repeat of a change in force is no change, so an
        unknown outcome is simply tried again."""
        call = MembershipCall(operation, member, expected)
        deadline_ms = boottime_ms() + ADMIN_TIMEOUT_MS
        while boottime_ms() < deadline_ms:
            try:
                async with asyncio.timeout(max(1, deadline_ms - boottime_ms()) / 1_000):
                    reply = await self._call_leader(call, deadline_ms)
            except TimeoutError:
                break
            if isinstance(reply, ConfigurationReply):
                return reply.configuration
            if self._ends_requests:
                break
            if isinstance(reply, RejectedReply) and reply.reason in _FINAL_REASONS:
                raise _error(reply.reason)
            await self.runtime.leader_change(LEADER_POLL_SECONDS)
        raise OutcomeUnknown("the membership change was not confirmed in time; ask again")

    async def transfer_leadership(self, target: MemberId | None) -> MemberId:
        """See `interface.Node.transfer_leadership`."""
        runtime = self.runtime
        before = runtime.replica.leader
        if target is not None and target == before:
            return target
        self._check_successor(runtime, target)
        deadline_ms = boottime_ms() + ADMIN_TIMEOUT_MS
        reply = await self._call_leader(TransferCall(target), deadline_ms)
        if reply is None:
            raise NoLeader("no leader to hand over")
        if isinstance(reply, RejectedReply):
            raise _error(reply.reason)
        while boottime_ms() < deadline_ms and not self._ends_requests:
            leader = runtime.replica.leader
            if leader is not None and leader != before and target in (None, leader):
                return leader
            await runtime.leader_change(LEADER_POLL_SECONDS)
        raise ConfigConflict("leadership was not taken over in time")

    @staticmethod
    def _check_successor(runtime: Runtime, target: MemberId | None) -> None:
        voters = runtime.replica.configuration.voters
        if target is not None and target not in voters:
            raise ConfigConflict(f"{target} is not the id of a voter")
        if runtime.replica.leader is not None and set(voters) <= {runtime.replica.leader}:
            raise ConfigConflict("there is no other voter to hand leadership to")

    async def archive(self) -> str:
        """See `interface.Node.archive`; `main` replaces it by the real thing."""
        raise ConfigConflict("only a removed member can be archived")


def _by_id(member_id: MemberId) -> Member:
    return Member(id=member_id, name="", peer_url="")


# What a node says of itself when it takes no part, or is not the member that was meant.
_NOT_SERVING = frozenset(
    {
        RejectReason.UNINITIALISED,
        RejectReason.REMOVED,
        RejectReason.STOPPED,
        RejectReason.NOT_LISTED,
    }
)

_FINAL_REASONS = frozenset(RejectReason) - {
    RejectReason.NOT_LEADER,
    RejectReason.LEADERSHIP_LOST,
    RejectReason.OVERLOADED,
}


def _error(reason: RejectReason) -> DistSyncError:
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
