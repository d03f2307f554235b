"""Nodes in this process: the real runtime, disk and peer port, without processes and clients' port.

They find each other by real connections on loopback. What a test wants to see happen between two
nodes, it brings about by stopping one of them or by putting words into the mouth of its client.
Nobody campaigns by itself for a long time, so a busy machine changes no leader: `elect` does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from distsync_node.api.app import build_peer_app
from distsync_node.locks.commands import (
    Acquire,
    FencingToken,
    Granted,
    LockMode,
    Release,
    RequestKey,
)
from distsync_node.peers.client import PeerClient
from distsync_node.peers.endpoints import PeerEndpoints
from distsync_node.peers.inbound import Receiver
from distsync_node.raft.types import (
    LogIndex,
    Member,
    MemberId,
    RaftMessage,
    RaftOptions,
    Term,
    TimeoutNow,
    VoteRequest,
)
from distsync_node.replica.types import Envelope, ReplicaOptions
from distsync_node.services.interface import CommandReply
from distsync_node.services.node import NodeService
from distsync_node.services.runtime import Runtime
from distsync_node.storage import Storage
from unit.peer_port import PeerPort
from waiting_for import eventually

SECRET = "a secret of tests"
CALM = RaftOptions(election_timeout_min_ms=30_000, election_timeout_max_ms=60_000)


class TestNode:
    """One node; `start` and `stop` it."""

    __test__ = False

    def __init__(
        self,
        name: str,
        directory: Path,
        options: ReplicaOptions | None = None,
        raft_options: RaftOptions = CALM,
    ) -> None:
        self.name = name
        self.directory = directory / name
        self.options = options or ReplicaOptions()
        self.raft_options = raft_options
        self.stopped_because: list[str] = []
        self.port = PeerPort()
        self.url = self.port.url
        self.storage = Storage.open(self.directory)
        self.client = PeerClient(SECRET, name)
        self.service = NodeService(name, self.client)

    @property
    def member(self) -> Member:
        return Member(id=self.storage.member_id, name=self.name, peer_url=self.url)

    async def start(self) -> None:
        await self.client.__aenter__()
        self.runtime = Runtime(
            self.storage,
            self.client.target,
            options=self.options,
            raft_options=self.raft_options,
            on_stop=self.stopped_because.append,
        )
        self.service.attach(self.runtime)
        handlers = PeerEndpoints(self.service).handlers()
        app = build_peer_app(self.service, SECRET, handlers, node_name=self.name)
        self.port.serve(self._receivers(), SECRET, app)
        self.runtime.start()

    def _receivers(self) -> dict[str, Receiver]:
        """What takes requests below ASGI; a test may put another in the place of one."""
        self.receivers = self.service.receivers()

        def receiver(path: str) -> Receiver:
            return lambda body, respond: self.receivers[path](body, respond)

        return {path: receiver(path) for path in self.receivers}

    @property
    def log_end(self) -> LogIndex:
        raft = self.runtime.replica.raft
        assert raft is not None
        return raft.last_index

    def campaign(self) -> None:
        """Stand for election as if the leader had handed over."""
        raft = self.runtime.replica.raft
        assert raft is not None
        message = TimeoutNow(raft.term)
        sender = MemberId("who leads before")
        self.runtime.receive(
            Envelope("k", sender, self.member.id, (1, 1), (message,)), lambda _: True
        )

    async def stop(self) -> None:
        self.service.end_requests()
        await self.runtime.close()
        await self.port.end()
        await self.service.close()
        await self.client.__aexit__()
        self.storage.close()


class TestCluster:
    """Nodes that have formed a cluster."""

    __test__ = False

    def __init__(
        self,
        directory: Path,
        nodes: int,
        options: ReplicaOptions | None,
        raft_options: RaftOptions,
    ) -> None:
        self.nodes = [
            TestNode(f"n{number}", directory, options, raft_options)
            for number in range(1, nodes + 1)
        ]
        self.gone: set[TestNode] = set()  # those whose runtime a test has closed

    async def form(self) -> None:
        for node in self.nodes:
            await node.start()
        members = tuple(node.member for node in self.nodes)
        for node in self.nodes:
            await node.service.bootstrap("k", members)
        await self.elect(self.nodes[0])

    async def elect(self, node: TestNode) -> None:
        """Have a node take over from the leader, or win while there is none."""
        leader = self.leader
        if leader is None:
            # Whose log is behind that of another voter gets no vote of it.
            await eventually(
                lambda: node.log_end == max(other.log_end for other in self.there),
                f"{node.name} has what there is",
            )
            node.campaign()
        elif leader is not node:
            # It proposes nothing meanwhile: an entry that got ahead of the campaign would cost the
            # votes of those who have it.
            await leader.service.transfer_leadership(node.member.id)
        await eventually(lambda: self._all_follow(node), f"{node.name} leads")

    async def elect_successor(self) -> None:
        """Have the one with the longest log campaign, now that the leader has gone.

        What the leader had sent may still arrive and make the log of another the longest.
        """
        while True:
            node = max(self.there, key=lambda node: node.log_end)
            node.campaign()
            with contextlib.suppress(AssertionError):
                await eventually(lambda node=node: self._all_follow(node), within_seconds=5)
                return

    def _all_follow(self, node: TestNode) -> bool:
        leaders = {other.runtime.replica.leader for other in self.there}
        return node.runtime.replica.is_ready_leader and leaders == {node.member.id}

    @property
    def there(self) -> list[TestNode]:
        return [node for node in self.nodes if node not in self.gone]

    @property
    def leader(self) -> TestNode | None:
        return next((node for node in self.there if node.runtime.replica.is_ready_leader), None)

    @property
    def leading(self) -> TestNode:
        leader = self.leader
        assert leader is not None
        return leader

    @property
    def following(self) -> list[TestNode]:
        return [node for node in self.there if node is not self.leader]

    def waiters(self, name: str) -> int:
        if self.leader is None:
            return 0
        view = self.leader.service.machine.lock_view(name)
        return 0 if view is None else view.waiter_count


@contextlib.asynccontextmanager
async def running(
    directory: Path,
    nodes: int = 3,
    options: ReplicaOptions | None = None,
    raft_options: RaftOptions = CALM,
) -> AsyncIterator[TestCluster]:
    cluster = TestCluster(directory, nodes, options, raft_options)
    try:
        await cluster.form()
        yield cluster
    finally:
        for node in cluster.nodes:
            await node.stop()


def from_b(node: TestNode, message: RaftMessage) -> Envelope:
    """What a member "b", which does not exist, says to a node."""
    return Envelope("k", MemberId("b"), node.member.id, (1, 1), (message,))


def vote_request(term: int) -> VoteRequest:
    """A candidate that knows more than anybody and was told to campaign."""
    return VoteRequest(Term(term), LogIndex(1_000), Term(term - 1), transfer=True)


def acquire(name: str, owner: str, *, request: str = "", wait_ms: int = 0) -> Acquire:
    return Acquire(
        key=RequestKey(client="c", request=request or f"{name}/{owner}"),
        digest=b"12345678",
        names=(name,),
        owner=owner,
        mode=LockMode.EXCLUSIVE,
        ttl_ms=600_000,
        wait_ms=wait_ms,
    )


def release(name: str, owner: str, token: FencingToken) -> Release:
    key = RequestKey(client="c", request=f"release {name}/{token}")
    return Release(key=key, digest=b"87654321", name=name, owner=owner, token=token)


def token_of(reply: CommandReply) -> FencingToken:
    assert isinstance(reply.outcome, Granted)
    return reply.outcome.grants[0].token
