"""Lock commands through the leader, wherever it is and as often as it changes.

A command is retried under its own key until its deadline, so a change of leader costs time, not
certainty: what is not known to have failed is never reported as failed (`OutcomeUnknown`), and
`NoLeader` says that nothing was proposed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine

from distsync_node.errors import DiskFull, DistSyncError, NoLeader, OutcomeUnknown, ShuttingDown
from distsync_node.locks.commands import Acquire, Cancel, LockCommand, RequestKey, Upgrade
from distsync_node.peers.wire import OutcomeReply, RejectedReply
from distsync_node.raft.types import MemberId
from distsync_node.replica.types import Rejected, RejectReason, Reply
from distsync_node.services.interface import CommandReply
from distsync_node.services.leader_calls import Attempts, LeaderCalls, error_of
from distsync_node.services.runtime import Runtime, boottime_ms

LEADER_POLL_SECONDS = 0.05
CANCEL_TIMEOUT_MS = 5_000


class Commands:
    """Runs commands for clients of this node."""

    def __init__(self, calls: LeaderCalls) -> None:
        self._calls = calls
        self._background: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """End what still runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def submit(
        self, runtime: Runtime, command: LockCommand, *, timeout_ms: int
    ) -> CommandReply:
        """See `interface.Node.submit`."""
        self._calls.check_go_on()
        attempts = Attempts(timeout_ms)
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
                self._cancel_in_background(runtime, command.key, attempts.attempt)
            raise

    async def _try_once(
        self, runtime: Runtime, command: LockCommand, attempts: Attempts, deadline_ms: int
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
        self, runtime: Runtime, command: LockCommand, attempts: Attempts, deadline_ms: int
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
        attempts: Attempts,
        deadline_ms: int,
    ) -> CommandReply | RejectReason:
        reply = await self._calls.run(runtime, leader, command, deadline_ms, attempts)
        if isinstance(reply, OutcomeReply):
            return CommandReply(outcome=reply.outcome, remaining_ms=reply.remaining_ms)
        if isinstance(reply, RejectedReply):
            if reply.reason is RejectReason.LEADERSHIP_LOST:
                attempts.may_be_proposed = True
            return reply.reason
        return RejectReason.NOT_LEADER

    async def _pause_or_raise(
        self, runtime: Runtime, reason: RejectReason, attempts: Attempts, deadline_ms: int
    ) -> None:
        """Wait for a better moment, or say why there is none."""
        if self._calls.are_over and attempts.may_be_proposed:
            raise OutcomeUnknown("this node stops; ask another one with the same request_id")
        if self._calls.are_over:
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
        raise error_of(reason)

    def _cancel_in_background(self, runtime: Runtime, key: RequestKey, attempt: int) -> None:
        """The client is gone and so may be the leader that knew it: tell whoever leads now."""

        async def cancel() -> None:
            command = Cancel(key=key, attempt=attempt)
            with contextlib.suppress(DistSyncError):
                await self.submit(runtime, command, timeout_ms=CANCEL_TIMEOUT_MS)

        if not self._calls.are_over:
            self._spawn(cancel())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
