"""A node without consensus: the real lock machine, and every command is committed at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from distsync_node.cluster.ring_state import EMPTY_RING, EnterRing, Incarnation, Server, apply
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import ConfigConflict, DistSyncError
from distsync_node.locks.commands import Cancel, Done, Granted, LockCommand, Outcome, Waiting
from distsync_node.locks.machine import LockMachine
from distsync_node.raft.types import Configuration, LogIndex, Member, MemberId
from distsync_node.services.interface import CommandReply, NodeStatus, PeerProgress

LEADER_URL = "http://leader.test:8080"


def member(name: str, *, voter: bool = True) -> Member:
    return Member(
        id=MemberId(f"id-{name}"),
        name=name,
        peer_url=f"http://{name}.test:8180",
        client_url=f"http://{name}.test:8080",
        voter=voter,
    )


class LocalNode:
    """Implements `services.interface.Node`. Leader time is the event loop's."""

    def __init__(self) -> None:
        self._machine = LockMachine()
        self._waiting: dict[Any, list[asyncio.Future[Outcome]]] = {}
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self.error: BaseException | None = None  # raised by every call when set
        self.leader: Member | None = member("node-1")
        self.members = (member("node-1"), member("node-2"), member("node-3", voter=False))
        self.config_index = 7
        self.changes: dict[str, Any] = {}  # of the status, by field
        self.submitted: list[LockCommand] = []
        self.cancelled: list[LockCommand] = []
        self.barriers = 0

    # --- Commands -------------------------------------------------------------------------

    async def submit(self, command: LockCommand, *, timeout_ms: int) -> CommandReply:
        self.fail_if_told()
        self.submitted.append(command)
        outcome = self.apply(command)
        if isinstance(outcome, Waiting):
            outcome = await self._wait(command, outcome.attempt)
        deadline_ms = outcome.deadline_ms if isinstance(outcome, Granted | Done) else 0
        remaining_ms = max(0, deadline_ms - self.leader_time_ms()) if deadline_ms else 0
        return CommandReply(outcome=outcome, remaining_ms=remaining_ms)

    async def _wait(self, command: Any, attempt: int) -> Outcome:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(command.key, []).append(future)
        try:
            return await future
        except asyncio.CancelledError:
            self._waiting[command.key].remove(future)
            self.cancelled.append(command)
            self.apply(Cancel(key=command.key, attempt=attempt))
            raise

    def apply(self, command: LockCommand) -> Outcome:
        outcome = self._machine.apply(command, self.leader_time_ms())
        for notice in self._machine.take_notices():
            for future in self._waiting.pop(notice.key, ()):
                if not future.done():
                    future.set_result(notice.outcome)
        for name in self._machine.take_changes():
            for event in self._watchers.get(name, ()):
                event.set()
        self._schedule_expiry()
        return outcome

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        deadline_ms = self._machine.next_deadline_ms()
        if deadline_ms is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_at(deadline_ms / 1000 + 0.001, self._expire)

    def _expire(self) -> None:
        expire = self._machine.due(self.leader_time_ms())
        if expire is not None:
            self.apply(expire)
        else:
            self._schedule_expiry()

    def fail_if_told(self) -> None:
        if self.error is not None:
            raise self.error

    # --- Reads ----------------------------------------------------------------------------

    async def read_barrier(self, *, timeout_ms: int) -> None:
        self.fail_if_told()
        self.barriers += 1

    @property
    def machine(self) -> LockMachine:
        return self._machine

    def leader_time_ms(self) -> int:
        return int(asyncio.get_running_loop().time() * 1000)

    async def watch(self, name: str) -> AsyncIterator[None]:
        event = asyncio.Event()
        self._watchers.setdefault(name, set()).add(event)
        try:
            while True:
                event.clear()
                yield
                await event.wait()
                self.fail_if_told()
        finally:
            self._watchers[name].remove(event)

    def wake_watchers(self, name: str) -> None:
        for event in self._watchers[name]:
            event.set()

    def watcher_count(self, name: str) -> int:
        return len(self._watchers.get(name, ()))

    def waiting_count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def status(self) -> NodeStatus:
        fields: dict[str, Any] = {
            "node": "node-1",
            "member_id": MemberId("id-node-1"),
            "state": "member",
            "role": "leader",
            "leader": self.leader,
            "term": 3,
            "commit_index": 1_204,
            "applied_index": 1_203,
            "cluster_id": "c-1",
            "cluster_version": 1,
            "ready": True,
            "disk_full": False,
            "configuration": self.configuration(),
            "progress": {
                MemberId("id-node-2"): PeerProgress(
                    match_index=1_200, state="replicate", last_contact_ms=12
                )
            },
            "leader_changes": 2,
            "ring_epoch": self.ring().epoch,
            "serving": True,
        }
        return NodeStatus(**{**fields, **self.changes})

    def ring(self) -> RingView:
        view = RingView()
        state = EMPTY_RING
        for name in ("node-1", "node-2"):
            server = Server(
                name=name, member=MemberId(f"id-{name}"), incarnation=Incarnation(7), weight=1.0
            )
            state = apply(state, EnterRing(server=server))
        view.adopt(state)
        return view

    def leader_client_url(self) -> str | None:
        return LEADER_URL if self.leader is not None else None

    # --- Administration -------------------------------------------------------------------

    def configuration(self) -> Configuration:
        return Configuration(index=LogIndex(self.config_index), members=self.members)

    async def bootstrap(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        self.fail_if_told()
        self.members = members

    async def add_member(
        self, member: Member, expected_config_index: LogIndex | None
    ) -> Configuration:
        return self._changed((*self.members, member), expected_config_index)

    async def promote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        return self._with_vote(member_id, True, expected_config_index)

    async def demote_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        return self._with_vote(member_id, False, expected_config_index)

    async def remove_member(
        self, member_id: MemberId, expected_config_index: LogIndex | None
    ) -> Configuration:
        members = tuple(member for member in self.members if member.id != member_id)
        return self._changed(members, expected_config_index)

    def _with_vote(
        self, member_id: MemberId, voter: bool, expected: LogIndex | None
    ) -> Configuration:
        if self.configuration().member(member_id) is None:
            raise ConfigConflict("no such member")
        members = tuple(
            Member(m.id, m.name, m.peer_url, m.client_url, voter) if m.id == member_id else m
            for m in self.members
        )
        return self._changed(members, expected)

    def _changed(self, members: tuple[Member, ...], expected: LogIndex | None) -> Configuration:
        self.fail_if_told()
        if expected is not None and expected != self.config_index:
            raise ConfigConflict("the membership is not what was expected")
        self.members = members
        self.config_index += 1
        return self.configuration()

    async def transfer_leadership(self, target: MemberId | None) -> MemberId:
        self.fail_if_told()
        return target or MemberId("id-node-2")

    async def drain(self) -> None:
        self.fail_if_told()
        self.changes = {**self.changes, "draining": True, "ready": False}

    async def archive(self) -> str:
        self.fail_if_told()
        if self.status().state != "removed":
            raise ConfigConflict("only a removed member can be archived")
        return "/data/removed-1"


def failing(node: LocalNode, error: DistSyncError) -> LocalNode:
    node.error = error
    return node
