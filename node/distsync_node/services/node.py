"""The node behind its HTTP endpoints: what its parts do, as one `services.interface.Node`.

Commands are in `commands`, calls to the leader in `leader_calls`, answers to other nodes in
`answering`; here are reads, administration, and the end of it all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from distsync_node.cluster.ring_state import Epoch, RingState, Server
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import ConfigConflict, NoLeader, OutcomeUnknown, Uninitialised
from distsync_node.locks.commands import LockCommand
from distsync_node.locks.machine import LockMachine
from distsync_node.peers.client import PeerClient
from distsync_node.peers.inbound import Receiver, Respond, RespondBytes, receive_envelopes
from distsync_node.peers.wire import (
    CALL_PATH,
    COMMANDS_PATH,
    BootstrapCall,
    Call,
    CallReply,
    CallRequest,
    ConfigurationReply,
    MembershipCall,
    ReadIndexCall,
    ReadIndexReply,
    RejectedReply,
    TransferCall,
    decode_commands,
    encode,
)
from distsync_node.raft.types import ConfigOperation, Configuration, LogIndex, Member, MemberId
from distsync_node.replica.types import (
    AcknowledgeEpoch,
    AwaitApplied,
    Drain,
    Envelope,
    Rejected,
    RejectReason,
)
from distsync_node.services.answering import answer, answer_commands, bootstrap
from distsync_node.services.commands import LEADER_POLL_SECONDS, Commands
from distsync_node.services.interface import CommandReply, NodeStatus
from distsync_node.services.leader_calls import FINAL_REASONS, Attempts, LeaderCalls, error_of
from distsync_node.services.runtime import Runtime, boottime_ms
from distsync_node.services.shared import Shared
from distsync_node.services.standing import starting_status, status_of

ADMIN_TIMEOUT_MS = 5_000
RING_POLL_SECONDS = 0.01


class NodeService:
    """Implements `services.interface.Node` on a runtime."""

    def __init__(self, name: str, client: PeerClient) -> None:
        self._name = name
        self._calls = LeaderCalls(client)
        self._commands = Commands(self._calls)
        self._runtime: Runtime | None = None
        self._ring = RingView()
        self._ring_watchers: list[Callable[[], None]] = []
        self._log_watchers: list[Callable[[RingState], None]] = []
        self._lease_watchers: list[Callable[[Epoch, int], None]] = []
        self._before_serving: list[Callable[[Epoch], bool]] = []
        self._before_leaving: list[Callable[[], Awaitable[object]]] = []
        self._leaving: asyncio.Task[None] | None = None
        self._shared_read_index = Shared(self._ask_read_index)
        self.draining = False

    def attach(self, runtime: Runtime) -> None:
        """The data directory is open: begin to serve."""
        self._runtime = runtime
        self._calls.attach(runtime)
        runtime.on_ring = self._log_has_ring
        runtime.on_lease = self._lease_held
        self._log_has_ring(runtime.replica.ring)

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
        self._calls.end()
        if self._runtime is not None:
            self._runtime.end_calls()

    async def close(self) -> None:
        """End what still runs in the background."""
        if self._leaving is not None:
            self._leaving.cancel()
            await asyncio.gather(self._leaving, return_exceptions=True)
        await self._commands.close()
        await self._calls.close()

    # --- Commands -------------------------------------------------------------------------------

    async def submit(self, command: LockCommand, *, timeout_ms: int) -> CommandReply:
        """See `interface.Node.submit`."""
        return await self._commands.submit(self.runtime, command, timeout_ms=timeout_ms)

    # --- Calls from other nodes -----------------------------------------------------------------

    def receive(self, envelope: Envelope, respond: Respond) -> None:
        """Take an envelope of another node."""
        self.runtime.receive(envelope, respond)

    async def answer_call(
        self, request: CallRequest, on_parked: Callable[[int], object] | None = None
    ) -> CallReply:
        """Answer another node's call as the leader, or say that this is not the leader."""
        if self._calls.are_over:
            return RejectedReply(RejectReason.NOT_LEADER, None)
        return await answer(self._name, self.runtime, request, on_parked)

    def receivers(self) -> dict[str, Receiver]:
        """Return what takes requests of other nodes below ASGI, by path."""
        return {**receive_envelopes(self.receive), COMMANDS_PATH: self._receive_commands}

    def _receive_commands(self, body: bytes, respond: RespondBytes) -> None:
        requests = decode_commands(body)
        if self._calls.are_over:
            respond(encode((RejectedReply(RejectReason.NOT_LEADER, None),) * len(requests)))
        else:
            answer_commands(self.runtime, requests, respond)

    # --- Reads ----------------------------------------------------------------------------------

    async def read_barrier(self, *, timeout_ms: int) -> None:
        """See `interface.Node.read_barrier`."""
        self._calls.check_go_on()
        runtime = self.runtime
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while True:
                    reply = await self._read_index()
                    if isinstance(reply, ReadIndexReply):
                        await self._await_applied(runtime, reply.index)
                        return
                    self._calls.check_go_on()
                    if isinstance(reply, RejectedReply) and reply.reason in FINAL_REASONS:
                        raise error_of(reply.reason)
                    await runtime.leader_change(LEADER_POLL_SECONDS)
        except TimeoutError:
            raise NoLeader("no leader confirmed the read in time") from None

    async def _await_applied(self, runtime: Runtime, index: LogIndex) -> None:
        final = await runtime.ask(
            lambda ref: AwaitApplied(now_ms=boottime_ms(), ref=ref, index=index)
        )
        if isinstance(final, Rejected):
            self._calls.check_go_on()
            raise error_of(final.reason)

    async def _read_index(self) -> CallReply | None:
        """Have the leader confirm a read; elsewhere many reads share the question."""
        if self._is_asked_here():
            return await self._answer_here(ReadIndexCall())
        return await self._shared_read_index.answer()

    async def _ask_read_index(self) -> CallReply | None:
        return await self._call_leader(ReadIndexCall(), boottime_ms() + ADMIN_TIMEOUT_MS)

    def _is_asked_here(self) -> bool:
        """Whether this node itself is to answer calls, if only with a refusal."""
        replica = self.runtime.replica
        is_leader = replica.leader == replica.member_id
        return is_leader or replica.raft is None or replica.state != "member"

    async def _answer_here(self, call: Call) -> CallReply:
        replica = self.runtime.replica
        own_id = replica.member_id
        return await self.answer_call(CallRequest(replica.cluster_id, own_id, own_id, call))

    async def _call_leader(self, call: Call, deadline_ms: int) -> CallReply | None:
        """Ask whoever leads, here or elsewhere; None if nobody answered."""
        if self._is_asked_here():
            return await self._answer_here(call)
        runtime = self.runtime
        leader = runtime.replica.leader
        if leader is None:
            return None
        attempts = Attempts(ADMIN_TIMEOUT_MS)
        return await self._calls.ask(runtime, leader, call, CALL_PATH, deadline_ms, attempts)

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
            return starting_status(self._name)
        epoch = self._ring.epoch
        return status_of(
            self._name,
            self._runtime,
            ring_epoch=epoch,
            is_at_work=all(callback(epoch) for callback in self._before_serving),
            draining=self.draining,
            now_ms=boottime_ms(),
        )

    def ring(self) -> RingView:
        """See `interface.Node.ring`."""
        return self._ring

    # --- Places: see `queues.owners`, `cache.service` ------------------------------------------

    @property
    def own_id(self) -> MemberId | None:
        """The id of this member, once its data directory is open."""
        return self._runtime.replica.member_id if self._runtime is not None else None

    @property
    def cluster_id(self) -> str:
        """The cluster this member belongs to, '' for none."""
        return self._runtime.replica.cluster_id or "" if self._runtime is not None else ""

    def adopt_ring(self, ring: RingState) -> None:
        """Take over a newer ring, of the own log or of another node."""
        if self._ring.adopt(ring):
            for watcher in self._ring_watchers:
                watcher()

    def _log_has_ring(self, ring: RingState) -> None:
        for watcher in self._log_watchers:
            watcher(ring)
        self.adopt_ring(ring)

    def _lease_held(self, epoch: Epoch, ends_ms: int) -> None:
        for watcher in self._lease_watchers:
            watcher(epoch, ends_ms)

    def on_log_ring(self, callback: Callable[[RingState], None]) -> None:
        """Have `callback` called with each ring of the log, one after the other."""
        self._log_watchers.append(callback)

    def on_lease(self, callback: Callable[[Epoch, int], None]) -> None:
        """Have `callback` called with each lease: the epoch, and until when. 0: it is given up."""
        self._lease_watchers.append(callback)

    def acknowledge(self, epoch: Epoch) -> None:
        """Nothing is done under an older epoch here any more."""
        if self._runtime is not None:
            self._runtime.step(AcknowledgeEpoch(now_ms=boottime_ms(), epoch=epoch))

    def own_server(self) -> Server | None:
        """Return this process as it enters the ring; None while its cluster does not know it."""
        participant = None if self._runtime is None else self._runtime.replica.participant
        if participant is None:
            return None
        return participant.serving.server(participant.raft.configuration)

    def member(self, member_id: MemberId) -> Member | None:
        """Return a member of the configuration."""
        if self._runtime is None:
            return None
        return self._runtime.replica.configuration.member(member_id)

    def on_ring_change(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever the ring known here is another."""
        self._ring_watchers.append(callback)

    def before_serving(self, callback: Callable[[Epoch], bool]) -> None:
        """Have this node say that it serves its part of an epoch's ring once `callback` is true."""
        self._before_serving.append(callback)

    def before_leaving(self, callback: Callable[[], Awaitable[object]]) -> None:
        """Have `callback` end what needs the node lease before `drain` takes this node out."""
        self._before_leaving.append(callback)

    async def drain(self) -> None:
        """See `interface.Node.drain`."""
        runtime = self.runtime
        self.draining = True
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(runtime))

    async def _leave(self, runtime: Runtime) -> None:
        for callback in self._before_leaving:
            await callback()
        runtime.step(Drain(now_ms=boottime_ms()))

    async def leave_ring(self, timeout_seconds: float) -> bool:
        """Hand this node's part of the ring over; returns whether that was done in time.

        What needs the node lease has to have ended.
        """
        runtime = self.runtime
        runtime.step(Drain(now_ms=boottime_ms()))
        deadline_ms = boottime_ms() + int(timeout_seconds * 1_000)
        while any(server.member == self.own_id for server in self._ring.state.servers):
            if boottime_ms() >= deadline_ms:
                return False
            await runtime.leader_change(RING_POLL_SECONDS)
        return True

    # --- Administration -------------------------------------------------------------------------

    async def bootstrap(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        """See `interface.Node.bootstrap`."""
        reply = await bootstrap(self.runtime, BootstrapCall(cluster_id, members))
        if isinstance(reply, RejectedReply):
            raise error_of(reply.reason)

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
            if self._calls.are_over:
                break
            if isinstance(reply, RejectedReply) and reply.reason in FINAL_REASONS:
                raise error_of(reply.reason)
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
            raise error_of(reply.reason)
        while boottime_ms() < deadline_ms and not self._calls.are_over:
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
