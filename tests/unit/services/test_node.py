"""Commands and reads through a node, wherever the leader is and whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from distsync_node.errors import (
    ConfigConflict,
    NoLeader,
    OutcomeUnknown,
    ShuttingDown,
)
from distsync_node.locks.commands import Done, Granted, Refused
from distsync_node.peers import outbound
from distsync_node.peers.inbound import RespondBytes
from distsync_node.peers.outbound import Connection, OnDone, PeerUnreachable, Target
from distsync_node.peers.sharing import SharedRequests
from distsync_node.peers.wire import (
    COMMANDS_PATH,
    MESSAGES_PATH,
    CallRequest,
    CommandCall,
    CommandRequest,
    OutcomeReply,
    ReadIndexCall,
    RejectedReply,
    TransferCall,
    decode_commands,
    decode_replies,
    encode,
)
from distsync_node.raft.types import MemberId, RaftOptions
from distsync_node.replica.types import RejectReason
from distsync_node.services.forwarding import Forwarding
from distsync_node.services.interface import CommandReply
from unit.services.nodes import (
    TestCluster,
    TestNode,
    acquire,
    release,
    running,
    token_of,
)
from waiting_for import eventually

TIMEOUT_MS = 20_000
SHORT_MS = 300


class Mouth:
    """What the leader says, instead of it: one answer after another, the last for ever."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0

    def next(self) -> bytes | Exception:
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def post(
        self,
        url: str,
        body: bytes,
        *,
        timeout_seconds: float | None,
        on_attempt: Callable[[int], object] | None = None,
    ) -> bytes:
        """Answer a call, as the client of other nodes does."""
        answer = self.next()
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def connect(self, _target: Target, on_done: OnDone) -> Connection:
        """Connect to a leader that answers each of the commands of a request so."""
        if isinstance(self.answers[0], PeerUnreachable) and not self.answers[0].sent:
            self.asked += 1
            raise ConnectionRefusedError
        return Spoken(self, on_done)  # type: ignore[return-value]


class Spoken:
    """A connection to a leader that says what it is told to."""

    def __init__(self, mouth: Mouth, on_done: OnDone) -> None:
        self._mouth = mouth
        self._on_done = on_done
        self.is_open = True

    def post(self, body: bytes, path: str) -> None:
        assert path == COMMANDS_PATH
        count = len(decode_commands(body))
        answer = self._mouth.next()
        said = None
        if not isinstance(answer, Exception):
            said = bytes([0x90 + count]) + answer * count
        asyncio.get_running_loop().call_soon(self._on_done, self, said)

    def abort(self) -> None:
        self.is_open = False


def put_into_the_mouth_of_the_leader(node: TestNode, *answers: bytes | Exception) -> Mouth:
    mouth = Mouth(*answers)
    calls = node.service._calls
    calls._client = mouth  # type: ignore[assignment]
    shared = SharedRequests(
        node.client.target, COMMANDS_PATH, decode_replies, connect=mouth.connect
    )
    calls._forwarding = Forwarding(node.runtime, shared)
    return mouth


# A command that waits has a request of its own; others share one.
BOTH_WAYS = pytest.mark.parametrize("wait_ms", [0, 600_000], ids=["shared", "alone"])


def rejected(reason: RejectReason) -> bytes:
    return encode(RejectedReply(reason, None))


async def wait_for(
    cluster: TestCluster, node: TestNode, owner: str, timeout_ms: int = TIMEOUT_MS
) -> asyncio.Task[CommandReply]:
    """Have an owner wait for lock "a", which somebody holds, through a node."""
    waiting = asyncio.create_task(
        node.service.submit(acquire("a", owner, wait_ms=600_000), timeout_ms=timeout_ms)
    )
    before = cluster.waiters("a")
    await eventually(lambda: cluster.waiters("a") > before, "a waiter")
    return waiting


async def hold(cluster: TestCluster, owner: str = "holder") -> CommandReply:
    return await cluster.leading.service.submit(acquire("a", owner), timeout_ms=TIMEOUT_MS)


# --- Leaving the ring ----------------------------------------------------------------------------


async def test_a_drained_node_leaves_the_ring_once_what_needs_its_lease_has_ended(
    cluster: TestCluster,
) -> None:
    leaves = cluster.following[0]
    ended, begun = asyncio.Event(), list[None]()

    async def end() -> None:
        begun.append(None)
        await ended.wait()

    def ring() -> set[str]:
        return {server.name for server in cluster.leading.runtime.replica.ring.servers}

    def has_a_lease() -> bool:
        participant = leaves.runtime.replica.participant
        return participant is not None and participant.serving.lease_ends_ms() > 0

    await eventually(lambda: len(ring()) == len(cluster.nodes) and has_a_lease(), "a ring")
    leaves.service.before_leaving(end)
    for _ in range(2):
        await leaves.service.drain()
        assert leaves.service.status().draining
        assert not leaves.service.status().ready
    await eventually(lambda: begun, "the end of what needs the lease")
    assert has_a_lease()
    ended.set()
    await eventually(lambda: leaves.name not in ring(), "a ring without it")
    assert len(begun) == 1


# --- Forwarding ---------------------------------------------------------------------------------


async def test_any_node_takes_any_command_and_reads_what_was_acknowledged_elsewhere(
    cluster: TestCluster,
) -> None:
    for number, node in enumerate(cluster.nodes):
        reply = await node.service.submit(acquire(f"{number}", "o"), timeout_ms=TIMEOUT_MS)
        assert isinstance(reply.outcome, Granted)
        assert 0 < reply.remaining_ms <= 600_000
        for other in cluster.nodes:
            await other.service.read_barrier(timeout_ms=TIMEOUT_MS)
            assert other.service.machine.lock_view(f"{number}") is not None


async def test_a_call_of_another_node_is_never_passed_on(cluster: TestCluster) -> None:
    follower = cluster.following[0]
    mouth = put_into_the_mouth_of_the_leader(follower, rejected(RejectReason.NOT_LEADER))
    for call in (CommandCall(acquire("a", "o")), ReadIndexCall(), TransferCall(None)):
        request = CallRequest("k", cluster.leading.member.id, follower.member.id, call)
        answer = await follower.service.answer_call(request)
        assert answer == RejectedReply(RejectReason.NOT_LEADER, cluster.leading.member.id)
    assert mouth.asked == 0


async def test_a_call_for_another_member_or_cluster_or_of_a_removed_one_changes_nothing(
    cluster: TestCluster,
) -> None:
    leader = cluster.leading
    caller, removed = (node.member.id for node in cluster.following)
    await leader.service.remove_member(removed, None)
    call = CommandCall(acquire("a", "o"))
    wrong_member = CallRequest("k", caller, MemberId("who was here before"), call)
    wrong_cluster = CallRequest("another", caller, leader.member.id, call)
    wrong_sender = CallRequest("k", removed, leader.member.id, call)
    for request in (wrong_member, wrong_cluster, wrong_sender):
        assert isinstance(await leader.service.answer_call(request), RejectedReply)
    await leader.service.read_barrier(timeout_ms=TIMEOUT_MS)
    assert leader.service.machine.lock_view("a") is None


@pytest.mark.parametrize(
    "reason",
    [
        RejectReason.NOT_LEADER,
        RejectReason.UNINITIALISED,
        RejectReason.REMOVED,
        RejectReason.STOPPED,
        RejectReason.NOT_LISTED,
    ],
    ids=lambda reason: reason.name,
)
@BOTH_WAYS
async def test_a_leader_that_takes_no_part_any_more_is_asked_again(
    reason: RejectReason, wait_ms: int, cluster: TestCluster
) -> None:
    follower = cluster.following[0]
    outcome = Done(deadline_ms=0)
    mouth = put_into_the_mouth_of_the_leader(
        follower, rejected(reason), encode(OutcomeReply(outcome, 0))
    )
    command = acquire("a", "o", wait_ms=wait_ms)
    reply = await follower.service.submit(command, timeout_ms=TIMEOUT_MS)
    assert reply.outcome == outcome
    assert mouth.asked == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (PeerUnreachable("refused", sent=False), NoLeader),
        (rejected(RejectReason.NOT_LEADER), NoLeader),
        (PeerUnreachable("cut off", sent=True), OutcomeUnknown),
        (rejected(RejectReason.LEADERSHIP_LOST), OutcomeUnknown),
        (b"\xc1 is not msgpack", OutcomeUnknown),
    ],
    ids=["not sent", "not leader", "sent", "leadership lost", "unreadable"],
)
@BOTH_WAYS
async def test_no_leader_means_that_nothing_was_proposed(
    answer: bytes | Exception, error: type[Exception], wait_ms: int, cluster: TestCluster
) -> None:
    follower = cluster.following[0]
    put_into_the_mouth_of_the_leader(follower, answer)
    with pytest.raises(error):
        await follower.service.submit(acquire("a", "o", wait_ms=wait_ms), timeout_ms=SHORT_MS)


@BOTH_WAYS
async def test_once_unknown_an_outcome_stays_unknown_until_it_is_known(
    wait_ms: int, cluster: TestCluster
) -> None:
    follower = cluster.following[0]
    put_into_the_mouth_of_the_leader(
        follower, PeerUnreachable("cut off", sent=True), rejected(RejectReason.OVERLOADED)
    )
    with pytest.raises(OutcomeUnknown):
        await follower.service.submit(acquire("a", "o", wait_ms=wait_ms), timeout_ms=TIMEOUT_MS)


async def test_a_leader_that_stops_hands_over_and_its_waits_go_on(cluster: TestCluster) -> None:
    held = await hold(cluster)
    follower = cluster.following[0]
    waiting = await wait_for(cluster, follower, "waiter")
    await cluster.leading.service.transfer_leadership(None)
    await eventually(lambda: cluster.waiters("a") == 1, "the wait at the new leader")
    await follower.service.submit(release("a", "holder", token_of(held)), timeout_ms=TIMEOUT_MS)
    assert token_of(await waiting) > token_of(held)


class Silence(Mouth):
    """A leader that is asked and never heard of again."""

    async def post(self, *_: object, **__: object) -> bytes:
        self.asked += 1
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_wait_does_not_last_longer_at_a_leader_that_does_not_answer(
    cluster: TestCluster,
) -> None:
    follower = cluster.following[0]
    follower.service._calls._client = Silence()  # type: ignore[assignment]
    waiting = acquire("a", "o", wait_ms=600_000)
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(follower.service.submit(waiting, timeout_ms=SHORT_MS), 10)


async def test_a_wait_does_not_last_longer_without_any_leader(cluster: TestCluster) -> None:
    await hold(cluster)
    survivor = cluster.following[0]
    waiting = await wait_for(cluster, survivor, "waiter", timeout_ms=SHORT_MS)
    for node in cluster.nodes:
        if node is not survivor:
            await node.runtime.close()
            cluster.gone.add(node)
    with pytest.raises(OutcomeUnknown):
        await asyncio.wait_for(waiting, 20)
    late = acquire("a", "late", wait_ms=600_000)
    with pytest.raises(NoLeader):
        await asyncio.wait_for(survivor.service.submit(late, timeout_ms=SHORT_MS), 10)


@pytest.mark.parametrize("nodes", [3, 4], ids=["voter", "learner"])
async def test_a_wait_at_a_leader_that_is_heard_no_more_is_given_up(
    nodes: int, tmp_path: Path
) -> None:
    """Cut off with its wait under way: neither an answer nor an end of the connection comes."""
    quick = RaftOptions(election_timeout_min_ms=2_000, election_timeout_max_ms=2_500)
    async with running(tmp_path, nodes, raft_options=quick) as cluster:
        follower = cluster.following[-1]  # the fourth is a learner
        under_way = asyncio.Event()

        class Parked(Silence):
            async def post(self, *arguments: object, **options: Any) -> bytes:
                options["on_attempt"](1)
                under_way.set()
                return await super().post(*arguments)

        follower.service._calls._client = Parked()  # type: ignore[assignment]
        waiting = asyncio.create_task(
            follower.service.submit(acquire("a", "o", wait_ms=600_000), timeout_ms=SHORT_MS)
        )
        await asyncio.wait_for(under_way.wait(), 20)
        for node in cluster.nodes:
            if node is not follower:
                await node.runtime.close()
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(waiting, 20)


async def test_leadership_is_handed_only_to_another_voter(cluster: TestCluster) -> None:
    with pytest.raises(ConfigConflict, match="not the id of a voter"):
        await cluster.leading.service.transfer_leadership(MemberId("nobody"))
    target = cluster.following[0].member.id
    assert await cluster.following[1].service.transfer_leadership(target) == target
    assert await cluster.following[1].service.transfer_leadership(target) == target


# --- Commands that share a request ---------------------------------------------------------------


async def test_commands_that_do_not_wait_share_requests_and_each_has_its_own_outcome(
    cluster: TestCluster,
) -> None:
    follower = cluster.following[0]
    leader = cluster.leading
    requests: list[int] = []
    receive = leader.service._receive_commands

    def count(body: bytes, respond: RespondBytes) -> None:
        requests.append(len(decode_commands(body)))
        receive(body, respond)

    leader.receivers[COMMANDS_PATH] = count
    commands = [acquire(f"{number % 150}", f"o{number}") for number in range(300)]
    replies = await asyncio.gather(
        *(follower.service.submit(command, timeout_ms=TIMEOUT_MS) for command in commands)
    )
    for number, reply in enumerate(replies):
        assert isinstance(reply.outcome, Granted if number < 150 else Refused)
    assert sum(requests) == 300
    assert len(requests) <= 6


async def test_the_answers_of_commands_do_not_wait_for_a_command_that_waits(
    cluster: TestCluster,
) -> None:
    await hold(cluster)
    follower = cluster.following[0]
    waiting = await wait_for(cluster, follower, "waiter")
    reply = await follower.service.submit(acquire("b", "o"), timeout_ms=TIMEOUT_MS)
    assert isinstance(reply.outcome, Granted)
    assert not waiting.done()
    waiting.cancel()


async def test_commands_for_another_member_or_cluster_or_of_a_removed_one_change_nothing(
    cluster: TestCluster,
) -> None:
    leader = cluster.leading
    caller, removed = (node.member.id for node in cluster.following)
    await leader.service.remove_member(removed, None)
    here = leader.member.id
    answers: list[bytes] = []

    def respond(body: bytes) -> bool:
        answers.append(body)
        return True

    for cluster_id, sender, to in (
        ("k", caller, MemberId("who was here before")),
        ("another", caller, here),
        ("k", removed, here),
    ):
        wrong = CommandRequest(cluster_id, sender, to, acquire("a", "o"))
        right = CommandRequest("k", caller, here, acquire(f"{len(answers)}", "o"))
        leader.service._receive_commands(encode((wrong, right)), respond)
        await eventually(lambda: len(answers) % 2, "an answer")
        refused, granted = decode_replies(answers[-1])
        assert isinstance(refused, RejectedReply)
        assert isinstance(granted, OutcomeReply)
        leader.service._receive_commands(encode((wrong,)), respond)  # none is for this member
        (refused,) = decode_replies(answers[-1])
        assert isinstance(refused, RejectedReply)
    assert leader.service.machine.lock_view("a") is None


async def test_commands_to_a_leader_that_has_changed_are_taken_to_the_next(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They wait there for an answer that does not come, and there is another leader."""
    follower, other = cluster.following
    leader = cluster.leading
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 60.0)  # it is not that which ends them
    arrived = asyncio.Event()
    leader.receivers[COMMANDS_PATH] = lambda _body, _respond: arrived.set()
    task = asyncio.create_task(follower.service.submit(acquire("a", "o"), timeout_ms=TIMEOUT_MS))
    await asyncio.wait_for(arrived.wait(), 20)
    assert not task.done()
    await cluster.elect(other)
    reply = await asyncio.wait_for(task, 20)
    assert isinstance(reply.outcome, Granted)


async def test_a_node_that_stops_ends_commands_that_wait_for_the_leader(
    cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = cluster.following[0]
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 60.0)  # it is not that which ends them
    arrived = asyncio.Event()
    cluster.leading.receivers[COMMANDS_PATH] = lambda _body, _respond: arrived.set()
    task = asyncio.create_task(follower.service.submit(acquire("a", "o"), timeout_ms=TIMEOUT_MS))
    await asyncio.wait_for(arrived.wait(), 20)
    follower.service.end_requests()
    with pytest.raises(OutcomeUnknown, match="same request_id"):
        await asyncio.wait_for(task, 5)


async def test_a_client_that_goes_takes_nothing_from_those_it_shares_a_request_with(
    cluster: TestCluster,
) -> None:
    follower = cluster.following[0]
    tasks = [
        asyncio.create_task(follower.service.submit(acquire(name, "o"), timeout_ms=TIMEOUT_MS))
        for name in "abc"
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert tasks[1].cancelled()
    assert all(isinstance(tasks[index].result().outcome, Granted) for index in (0, 2))


# --- Clients that go away -----------------------------------------------------------------------


@pytest.mark.parametrize("through", ["leader", "follower"])
async def test_a_client_that_leaves_no_longer_waits(through: str, cluster: TestCluster) -> None:
    await hold(cluster)
    node = cluster.leading if through == "leader" else cluster.following[0]
    waiting = await wait_for(cluster, node, "waiter")
    waiting.cancel()
    await asyncio.wait((waiting,))
    assert waiting.cancelled()
    await eventually(lambda: cluster.waiters("a") == 0, "the end of the wait")


async def test_a_retry_through_another_node_survives_the_end_of_the_first_attempt(
    cluster: TestCluster,
) -> None:
    held = await hold(cluster)
    first_node, second_node = cluster.following
    waiting = acquire("a", "waiter", wait_ms=600_000)
    first = asyncio.create_task(first_node.service.submit(waiting, timeout_ms=TIMEOUT_MS))
    await eventually(lambda: cluster.waiters("a") == 1, "a waiter")
    parked: list[int] = []
    second = asyncio.create_task(cluster.leading.runtime.run(waiting, on_parked=parked.append))
    await eventually(lambda: parked == [2], "a second attempt")
    third = asyncio.create_task(second_node.service.submit(waiting, timeout_ms=TIMEOUT_MS))
    for task in (first, second):
        task.cancel()
    await asyncio.wait((first, second))
    reply = await cluster.leading.service.submit(
        release("a", "holder", token_of(held)), timeout_ms=TIMEOUT_MS
    )
    assert isinstance(reply.outcome, Done)
    assert token_of(await third) > token_of(held)


async def test_a_cancellation_while_a_request_is_given_up_is_not_lost(
    cluster: TestCluster,
) -> None:
    follower = cluster.following[0]
    asked, given_up, may_end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class SlowToEnd(Mouth):
        async def post(self, *_: object, **__: object) -> bytes:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()
                await may_end.wait()
            raise AssertionError

    follower.service._calls._client = SlowToEnd()  # type: ignore[assignment]
    waiting = acquire("a", "o", wait_ms=600_000)
    task = asyncio.create_task(follower.service.submit(waiting, timeout_ms=TIMEOUT_MS))
    await asked.wait()
    follower.service.end_requests()  # it gives up whom it asked
    await given_up.wait()
    task.cancel()
    await asyncio.sleep(0)
    may_end.set()
    await asyncio.wait((task,))
    assert task.cancelled()


# --- A node that stops --------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["leader", "follower"])
async def test_a_node_that_stops_answers_what_waits_at_once(
    through: str, cluster: TestCluster
) -> None:
    await hold(cluster)
    node = cluster.leading if through == "leader" else cluster.following[0]
    waiting = await wait_for(cluster, node, "waiter")
    node.service.end_requests()
    with pytest.raises(OutcomeUnknown, match="same request_id"):
        await asyncio.wait_for(waiting, 5)


async def test_a_node_that_stops_takes_nothing_new(cluster: TestCluster) -> None:
    node = cluster.following[0]
    put_into_the_mouth_of_the_leader(node, PeerUnreachable("refused", sent=False))
    node.service.end_requests()
    refused: list[Callable[[], Awaitable[object]]] = [
        lambda: node.service.submit(acquire("a", "o"), timeout_ms=TIMEOUT_MS),
        lambda: node.service.read_barrier(timeout_ms=TIMEOUT_MS),
    ]
    for call in refused:
        with pytest.raises(ShuttingDown):
            await asyncio.wait_for(call(), 5)


@pytest.mark.parametrize("heard", [True, False], ids=["heard", "not-heard"])
async def test_a_stopped_leader_leaves_the_waits_of_other_nodes_to_its_successor(
    cluster: TestCluster, *, heard: bool
) -> None:
    """Also where the node of the client is the one that does not know of the wait itself."""
    held = await hold(cluster)
    leader, follower = cluster.leading, cluster.following[0]
    receiver = follower.receivers[MESSAGES_PATH]
    if not heard:
        follower.receivers[MESSAGES_PATH] = lambda _body, _respond: None
    waiting = await wait_for(cluster, follower, "waiter")
    follower.receivers[MESSAGES_PATH] = receiver
    leader.service.end_requests()  # as when it stops without a hand-over
    await leader.runtime.close()
    cluster.gone.add(leader)
    await cluster.elect_successor()
    reply = await follower.service.submit(
        release("a", "holder", token_of(held)), timeout_ms=TIMEOUT_MS
    )
    assert not isinstance(reply.outcome, Refused)
    assert token_of(await waiting) > token_of(held)
