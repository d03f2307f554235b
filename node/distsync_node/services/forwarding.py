"""Commands that do not wait, on their way to the node that leads: many share a request.

A request for each costs both nodes more than the command itself (docs/decisions.md). So commands
gather while requests are in flight, and one request carries all that have gathered, below ASGI on
kept connections, as messages between members do.

Guarantees: each command is answered once, with what the leader said or with why it said nothing;
`Unanswered.sent` is false only if no byte of the command has left. Nothing is sent twice from here.
The order of commands is not kept. A command that waits for a lock has a request of its own, which
lasts as long as the wait (`leader_calls`): here it would hold back the answers of the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple, TypeAlias

import msgspec

from distsync_node.locks.commands import LockCommand
from distsync_node.peers.outbound import Connection, OnDone, Target, connect
from distsync_node.peers.wire import (
    COMMANDS_PATH,
    CallReply,
    CommandsRequest,
    decode_replies,
    encode,
)
from distsync_node.raft.types import MemberId
from distsync_node.services.runtime import Runtime, boottime_ms

logger = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 2  # and so many requests at a time: the more, the fewer share one
MAX_COMMANDS: Final = 256  # in one request
PAUSE_SECONDS: Final = 0.05  # before an address is tried again at which nobody listened

Connect: TypeAlias = Callable[[Target, OnDone], Awaitable[Connection]]


class Unanswered(NamedTuple):
    """The leader has not answered; it may have acted if the command was `sent`."""

    sent: bool


class _Waiting(NamedTuple):
    command: LockCommand
    future: asyncio.Future[CallReply | Unanswered]
    deadline_ms: int

    def answer(self, answer: CallReply | Unanswered) -> None:
        if not self.future.done():  # else its client is gone
            self.future.set_result(answer)


class Forwarding:
    """The way of commands to one leader at a time, the newest that was named."""

    def __init__(self, runtime: Runtime, *, connect: Connect = connect) -> None:
        self._runtime = runtime
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._leader: MemberId | None = None
        self._url = ""
        self._target: Target | None = None
        self._waiting: list[_Waiting] = []
        self._idle: list[Connection] = []
        self._busy: dict[Connection, list[_Waiting]] = {}
        self._connecting: asyncio.Task[None] | None = None
        self._is_due = False
        self._watcher: asyncio.Future[None] | None = None
        self._closed = False

    async def run(
        self, leader: MemberId, command: LockCommand, deadline_ms: int
    ) -> CallReply | Unanswered:
        """Have the leader run a command; it is not sent after its deadline."""
        if not self._is_led_by(leader):
            return Unanswered(sent=False)
        one = _Waiting(command, self._loop.create_future(), deadline_ms)
        self._waiting.append(one)
        if not self._is_due:
            # What else this turn of the loop brings shares the request.
            self._is_due = True
            self._loop.call_soon(self._kick)
        return await one.future

    def close(self) -> None:
        """Answer everything now, as it stands, and take nothing more."""
        self._closed = True
        self._give_up()
        if self._connecting is not None:
            self._connecting.cancel()

    # --- The leader ---------------------------------------------------------------------------

    def _is_led_by(self, leader: MemberId) -> bool:
        """Turn to that leader; returns whether there is a way to it."""
        member = self._runtime.replica.configuration.member(leader)
        url = "" if member is None else member.peer_url
        if (leader, url) != (self._leader, self._url):
            self._give_up()
            self._leader, self._url = leader, url
            self._target = self._runtime.make_target(url) if url else None
        return self._target is not None and not self._closed

    def _give_up(self) -> None:
        """Whoever was asked leads no longer, or nobody is to be asked any more."""
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.answer(Unanswered(sent=False))
        idle, self._idle = self._idle, []
        for connection in (*idle, *self._busy):
            connection.abort()

    def _watch(self) -> None:
        """Give up when there is another leader. Only while somebody waits."""
        if self._watcher is None:
            self._watcher = self._runtime.leader_watcher()
            self._watcher.add_done_callback(self._leader_changed)

    def _leader_changed(self, watcher: asyncio.Future[None]) -> None:
        self._watcher = None
        if watcher.cancelled() or not (self._busy or self._waiting):
            return
        if self._runtime.replica.leader in (None, self._leader):
            self._watch()
        else:
            self._give_up()

    # --- Requests -----------------------------------------------------------------------------

    def _kick(self) -> None:
        """Let what waits leave, as far as connections are free."""
        self._is_due = False
        while self._waiting and self._idle:
            batch = self._take()
            if batch:
                self._post(self._idle.pop(), batch)
        if self._waiting:
            self._grow()
        if self._waiting or self._busy:
            self._watch()

    def _take(self) -> list[_Waiting]:
        taken, self._waiting = self._waiting[:MAX_COMMANDS], self._waiting[MAX_COMMANDS:]
        now_ms = boottime_ms()
        for one in taken:
            if one.deadline_ms <= now_ms:
                one.answer(Unanswered(sent=False))
        return [one for one in taken if not one.future.done()]

    def _post(self, connection: Connection, batch: list[_Waiting]) -> None:
        replica = self._runtime.replica
        request = CommandsRequest(
            replica.cluster_id,
            replica.member_id,
            self._leader or MemberId(""),
            tuple(one.command for one in batch),
        )
        self._busy[connection] = batch
        connection.post(encode(request), COMMANDS_PATH)

    def _grow(self) -> None:
        if self._connecting is None and len(self._busy) < MAX_CONNECTIONS and self._target:
            self._connecting = self._loop.create_task(self._make_connection(self._target))

    async def _make_connection(self, target: Target) -> None:
        try:
            connection = await self._connect(target, self._done)
        except OSError:
            if target is self._target:
                waiting, self._waiting = self._waiting, []
                for one in waiting:
                    one.answer(Unanswered(sent=False))
            await asyncio.sleep(PAUSE_SECONDS)
        else:
            if self._closed or target is not self._target:
                connection.abort()
            else:
                self._idle.append(connection)
        finally:
            self._connecting = None
        self._kick()

    def _done(self, connection: Connection, body: bytes | None) -> None:
        """A request has ended, or an idle connection."""
        batch = self._busy.pop(connection, [])
        if connection in self._idle:
            self._idle.remove(connection)
        replies = None if body is None else self._read(body, len(batch))
        if body is not None and replies is None:
            connection.abort()
        elif connection.is_open and not self._closed:
            self._idle.append(connection)
        for position, one in enumerate(batch):
            one.answer(Unanswered(sent=True) if replies is None else replies[position])
        self._kick()

    def _read(self, body: bytes, count: int) -> tuple[CallReply, ...] | None:
        try:
            replies = decode_replies(body)
        except msgspec.MsgspecError:
            replies = ()
        if len(replies) != count:
            logger.warning("the leader %s answered in another format", self._leader)
            return None
        return replies
