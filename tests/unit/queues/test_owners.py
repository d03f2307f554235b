"""Calls to the node that owns a queue: three nodes on one real Redis, joined by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from distsync_node.cluster.ring_state import (
    EMPTY_RING,
    EnterRing,
    Incarnation,
    LeaveRing,
    RingState,
    Server,
    apply,
)
from distsync_node.cluster.ring_view import RingView
from distsync_node.errors import (
    BadRequest,
    DistSyncError,
    OutcomeUnknown,
    QueueFull,
    RedisFull,
    RedisUnavailable,
)
from distsync_node.peers.client import PeerClient
from distsync_node.peers.outbound import PeerUnreachable
from distsync_node.queues.calls import (
    POP_PATH,
    PUSH_PATH,
    Call,
    NotOwner,
    PopCall,
    Popped,
    PushCall,
    Pushed,
    Refused,
    Request,
    Response,
    SignalCall,
    decode_request,
    decode_responses,
    encode,
)
from distsync_node.queues.endpoints import InternalEndpoints
from distsync_node.queues.owners import Owners
from distsync_node.queues.service import QueueService
from distsync_node.queues.types import NewMessage, QueueConfigChange, Unclaimed
from distsync_node.queues.types import Popped as Claims
from distsync_node.raft.types import Member, MemberId
from redis_server import RedisServer

NAMES = ("n1", "n2", "n3")


def server_of(name: str) -> Server:
    return Server(name=name, member=MemberId(f"id-{name}"), incarnation=Incarnation(1))


def ring_of(*names: str) -> RingState:
    ring = EMPTY_RING
    for name in names:
        ring = apply(ring, EnterRing(server=server_of(name)))
    return ring


def without(ring: RingState, name: str) -> RingState:
    leave = LeaveRing(name=name, member=server_of(name).member, incarnation=Incarnation(1))
    return apply(ring, leave)


class Place:
    """What one node knows; implements `owners.Places`."""

    def __init__(self, name: str) -> None:
        self.own_id = MemberId(f"id-{name}")
        self.cluster_id = "c"
        self.view = RingView()
        self.callbacks: list[Callable[[], None]] = []

    def ring(self) -> RingView:
        return self.view

    def adopt_ring(self, ring: RingState) -> None:
        if self.view.adopt(ring):
            for callback in self.callbacks:
                callback()

    def member(self, member_id: MemberId) -> Member | None:
        name = member_id.removeprefix("id-")
        return Member(id=member_id, name=name, peer_url=f"http://{name}", client_url=f"c-{name}")

    def on_ring_change(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)


class Wire(PeerClient):
    """Carries calls between the nodes of a test."""

    def __init__(self) -> None:
        super().__init__("secret", "test")
        self.nodes: dict[str, QueueService] = {}
        self.asked: list[tuple[str, str]] = []
        self.dead: set[str] = set()
        self.silent: set[str] = set()
        self.mute: set[str] = set()  # does what it is asked, and dies before it answers
        self.mute_s = 0.0  # so long after it has done it

    async def post(
        self, url: str, body: bytes, *, timeout_seconds: float | None, **_: Any
    ) -> bytes:
        name, _, path = url.removeprefix("http://").partition("/")
        self.asked.append((name, path.rpartition("_")[2]))
        if name in self.dead:
            raise PeerUnreachable("dead", sent=False)
        try:
            async with asyncio.timeout(timeout_seconds):
                if name in self.silent:
                    await asyncio.Event().wait()
                reply = encode(await self.nodes[name].answer(decode_request(body)))
        except TimeoutError:
            raise PeerUnreachable("no answer in time", sent=True) from None
        if name in self.mute:
            await asyncio.sleep(self.mute_s)
            raise PeerUnreachable("connection lost", sent=True)
        return reply

    def shared(self, path: str, decode: Any) -> Any:
        return OneByOne(self, path, decode)


class OneByOne:
    """Carries calls that may share a request, each on its own; `decode` reads many answers."""

    def __init__(self, wire: Wire, path: str, decode: Any) -> None:
        self._wire = wire
        self._path = path
        self._decode = decode
        self._url = ""

    def address(self, url: str) -> None:
        self._url = url

    async def call(self, call: bytes, timeout_seconds: float) -> Response:
        path = self._url + {PushCall: PUSH_PATH, PopCall: POP_PATH}[type(decode_request(call).call)]
        reply = await self._wire.post(path, call, timeout_seconds=timeout_seconds)
        (response,) = self._decode(b"\x91" + reply)
        return response

    async def close(self) -> None:
        pass


class Trio:
    """Three nodes and the wire between them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.wire = Wire()
        self.places = {name: Place(name) for name in NAMES}
        for name in NAMES:
            self.wire.nodes[name] = QueueService(url, Owners(self.places[name], self.wire))
        self.ring = ring_of(*NAMES)

    async def start(self) -> None:
        for name in NAMES:
            await self.wire.nodes[name].start()
            self.places[name].adopt_ring(self.ring)

    def tell(self, ring: RingState, *names: str) -> None:
        self.ring = ring
        for name in names or NAMES:
            self.places[name].adopt_ring(ring)

    def queue_of(self, owner: str) -> str:
        view = RingView()
        view.adopt(self.ring)
        names = (f"q{number}" for number in range(1_000))
        return next(one for one in names if (at := view.owner(one)) and at.name == owner)

    async def push(self, at: str, queue: str, body: str = "x", **fields: Any) -> tuple[str, ...]:
        given = {"request_id": f"push-{queue}-{body}", "fence": None, **fields}
        return await self.wire.nodes[at].push(queue, [NewMessage(body=body.encode())], **given)

    def pop(
        self, at: str, queue: str, wait_ms: int = 0, request_id: str = "pop"
    ) -> asyncio.Task[Any]:
        return asyncio.create_task(
            self.wire.nodes[at].pop(
                queue, count=1, wait_ms=wait_ms, visibility_ms=60_000, request_id=request_id
            )
        )

    async def waits_at(self, name: str) -> None:
        async with asyncio.timeout(20):
            while not self.wire.nodes[name].waiting:
                await asyncio.sleep(0.001)

    async def waits_idly_at(self, name: str) -> None:
        """Until it has looked for messages and found none."""
        await self.waits_at(name)
        waiters = self.wire.nodes[name]._wakeups._waiters
        async with asyncio.timeout(20):
            while any(one.is_claiming for one in waiters.values()):
                await asyncio.sleep(0.001)


@pytest.fixture
def woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits looks for nothing by itself."""
    monkeypatch.setattr("distsync_node.queues.wakeups.RECHECK_MS", 600_000)


@pytest.fixture
async def trio(server: RedisServer) -> AsyncIterator[Trio]:
    server.empty()
    trio = Trio(server.url)
    await trio.start()
    yield trio
    for node in trio.wire.nodes.values():
        await node.close()


async def bodies(poll: asyncio.Task[Any]) -> list[bytes]:
    async with asyncio.timeout(20):
        return [one.body for one in (await poll).messages]


async def test_pushes_and_pops_go_to_the_owner(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    await trio.push("n1", queue)
    assert await bodies(trio.pop("n3", queue)) == [b"x"]
    assert trio.wire.asked == [("n2", "push"), ("n2", "pop")]
    await trio.push("n2", trio.queue_of("n2"), "own")
    assert len(trio.wire.asked) == 2


async def test_what_the_owner_refuses_is_refused(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    await trio.wire.nodes["n1"].configure(queue, QueueConfigChange(max_length=1), create=True)
    await trio.push("n1", queue, "1")
    with pytest.raises(QueueFull) as full:
        await trio.push("n1", queue, "2")
    assert full.value.fields["limit"] == "max_length"


async def test_a_dead_owner_costs_one_try_and_then_none(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    trio.wire.dead.add("n2")
    for number in range(5):
        await trio.push("n1", queue, str(number))
    assert trio.wire.asked == [("n2", "push")]
    assert await bodies(trio.pop("n1", queue)) == [b"0"]


async def test_an_owner_without_redis_is_passed_over(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    trio.wire.nodes["n2"] = QueueService("", Owners(trio.places["n2"], trio.wire))
    await trio.push("n1", queue)
    assert await bodies(trio.pop("n1", queue)) == [b"x"]


async def test_a_silent_owner_may_have_pushed_and_nothing_is_there_twice(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    first = await trio.push("n2", queue)
    trio.wire.silent.add("n2")
    assert await trio.push("n1", queue) == first
    stats = await trio.wire.nodes["n1"].store.stats(queue)
    assert (stats.ready, stats.pushed) == (1, 1)


@pytest.mark.usefixtures("woken")
async def test_a_poll_at_the_owner_is_woken_by_what_happens_elsewhere(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    poll = trio.pop("n1", queue, 60_000)
    await trio.waits_at("n2")
    await trio.push("n3", queue)
    assert await bodies(poll) == [b"x"]
    again = trio.pop("n1", queue, 60_000, "again")
    await trio.waits_at("n2")
    receipts = [one.receipt for one in poll.result().messages]
    await trio.wire.nodes["n3"].nack(queue, receipts, delay_ms=0, dead=False, request_id="nack")
    assert await bodies(again) == [b"x"]
    assert ("n2", "signal") in trio.wire.asked


async def test_who_has_an_older_ring_adopts_the_newer_one(trio: Trio) -> None:
    smaller = without(trio.ring, "n2")
    queue = trio.queue_of("n2")
    view = RingView()
    view.adopt(smaller)
    owner = view.owner(queue)
    assert owner is not None
    asking = next(name for name in ("n1", "n3") if name != owner.name)

    # The sender knows more: the receiver asks for its ring.
    trio.tell(smaller, asking)
    await trio.push(asking, queue)
    assert trio.wire.asked == [(owner.name, "push"), (owner.name, "push")]
    assert trio.places[owner.name].view.epoch == smaller.epoch

    # The receiver knows more: the sender is told who it is.
    trio.wire.asked.clear()
    back = apply(smaller, EnterRing(server=server_of("n2")))
    trio.tell(back, owner.name)
    await trio.push(asking, queue, "y")
    assert trio.wire.asked[:1] == [(owner.name, "push")]
    assert ("n2", "push") in trio.wire.asked
    assert trio.places[asking].view.epoch == back.epoch
    assert len(trio.wire.asked) <= 3


@pytest.mark.parametrize("call", ["push", "pop", "signal", "refused"])
async def test_an_owner_passes_its_newer_ring_on_with_every_answer(trio: Trio, call: str) -> None:
    newer = without(trio.ring, "n3")
    queue = trio.queue_of("n2")  # before and after
    trio.tell(newer, "n2")
    node = trio.wire.nodes["n1"]
    match call:
        case "push":
            await trio.push("n1", queue)
        case "pop":
            await trio.pop("n1", queue)
        case "signal":
            await node.configure(queue, QueueConfigChange(), create=True)
        case "refused":
            await node.store.configure(queue, QueueConfigChange(max_length=1), create=True)
            with pytest.raises(QueueFull):
                await node.push(queue, [NewMessage(body=b"x")] * 2, request_id="r", fence=None)
    async with asyncio.timeout(20):
        while trio.places["n1"].view.epoch < newer.epoch:
            await asyncio.sleep(0.001)


async def test_a_call_for_another_member_or_cluster_is_not_taken(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    trio.places["n2"].own_id = MemberId("id-another")
    await trio.push("n1", queue)
    assert trio.wire.nodes["n2"].waiting == 0
    assert await bodies(trio.pop("n3", queue)) == [b"x"]
    trio.places["n2"].own_id = MemberId("id-n2")
    trio.places["n2"].cluster_id = "another"
    await trio.push("n1", queue, "y")


async def test_polls_move_with_the_ring_wherever_they_wait(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    polls = [trio.pop(name, queue, 60_000, name) for name in NAMES]
    await trio.waits_at("n2")
    trio.tell(without(trio.ring, "n2"))
    view = trio.places["n1"].view
    owner = view.owner(queue)
    assert owner is not None
    async with asyncio.timeout(20):
        while trio.wire.nodes[owner.name].waiting < 3:
            await asyncio.sleep(0.001)
    for number in range(3):
        await trio.push("n2", queue, str(number))
    assert sorted([await bodies(poll) for poll in polls]) == [[b"0"], [b"1"], [b"2"]]


async def test_a_poll_leaves_an_owner_that_answers_others_no_more(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    poll = trio.pop("n1", queue, 60_000)
    await trio.waits_at("n2")
    trio.wire.silent.add("n2")
    await trio.push("n1", queue)
    assert await bodies(poll) == [b"x"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners are asked whether they are there many times a second."""
    monkeypatch.setattr("distsync_node.queues.owners.AVOID_SECONDS", 0.05)
    monkeypatch.setattr("distsync_node.queues.owners.WATCH_SECONDS", 0.05)
    monkeypatch.setattr("distsync_node.queues.owners.ANSWER_MS", 1_000)


@pytest.mark.usefixtures("quick")
async def test_a_poll_goes_back_to_an_owner_that_can_serve_again(trio: Trio) -> None:
    queue, own = trio.queue_of("n2"), trio.queue_of("n1")
    polls = [trio.pop("n1", queue, 60_000, "r"), trio.pop("n1", own, 60_000, "own")]
    await trio.waits_at("n2")
    trio.wire.silent.add("n2")
    async with asyncio.timeout(20):
        while trio.wire.nodes["n1"].waiting < 2:
            await asyncio.sleep(0.001)
    trio.wire.silent.clear()
    await trio.waits_at("n2")
    assert trio.wire.nodes["n1"].waiting == 1
    await trio.push("n3", queue)
    assert await bodies(polls[0]) == [b"x"]
    polls[1].cancel()


@pytest.mark.usefixtures("quick", "woken")
async def test_a_poll_stays_away_from_an_owner_that_answers_and_cannot_serve(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    trio.wire.nodes["n2"] = QueueService("", Owners(trio.places["n2"], trio.wire))
    poll = trio.pop("n1", queue, 60_000)
    async with asyncio.timeout(20):
        while trio.wire.asked.count(("n2", "signal")) < 3:
            await asyncio.sleep(0.001)
    assert trio.wire.asked.count(("n2", "pop")) == 1
    await trio.push("n1", queue)
    assert await bodies(poll) == [b"x"]


@pytest.mark.usefixtures("quick")
async def test_an_owner_that_came_back_under_another_address_is_found(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    trio.wire.dead.add("n2")
    await trio.push("n1", queue, "1")
    moved = Member(id=MemberId("id-n2"), name="n2", peer_url="http://moved", client_url="")
    trio.places["n1"].member = lambda _id: moved  # type: ignore[method-assign]
    trio.wire.nodes["moved"] = trio.wire.nodes["n2"]
    try:
        async with asyncio.timeout(20):
            while ("moved", "push") not in trio.wire.asked:
                await trio.push("n1", queue, "2")
                await asyncio.sleep(0.01)
    finally:
        del trio.wire.nodes["moved"]


@pytest.mark.usefixtures("woken")
async def test_a_poll_is_woken_when_a_delay_ends_wherever_that_began(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    node = trio.wire.nodes["n3"]
    poll = trio.pop("n1", queue, 60_000)
    await trio.waits_idly_at("n2")
    delayed = NewMessage(body=b"x", delay_ms=50)
    await node.push(queue, [delayed], request_id="push", fence=None)
    assert await bodies(poll) == [b"x"]
    receipts = [one.receipt for one in poll.result().messages]
    again = trio.pop("n1", queue, 60_000, "again")
    await trio.waits_idly_at("n2")
    await node.nack(queue, receipts, delay_ms=50, dead=False, request_id="nack")
    assert await bodies(again) == [b"x"]


async def test_a_client_that_goes_while_its_poll_waits_elsewhere_takes_no_message(
    trio: Trio,
) -> None:
    queue = trio.queue_of("n2")
    for turns in range(30):
        poll = trio.pop("n1", queue, 60_000, f"r{turns}")
        await asyncio.sleep(0)
        await trio.push("n3", queue, str(turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        poll.cancel()
        (outcome,) = await asyncio.gather(poll, return_exceptions=True)
        if isinstance(outcome, BaseException):
            async with asyncio.timeout(20):
                outcome = await trio.pop("n3", queue, 5_000, f"again{turns}")
        (message,) = outcome.messages
        assert (message.body, message.deliveries) == (b"%d" % turns, 1)
        settled = await trio.wire.nodes["n1"].ack(
            queue, [message.receipt], request_id=f"ack{turns}"
        )
        assert settled.stale == ()


@pytest.mark.parametrize("turns", range(12))
async def test_what_was_claimed_when_the_caller_went_is_given_back_not_sent(
    trio: Trio, turns: int
) -> None:
    """The claim and the end of the connection come within a few steps of the event loop."""
    queue = trio.queue_of("n2")
    node = trio.wire.nodes["n2"]
    await trio.push("n2", queue)
    call = PopCall(queue, 1, 5_000, 60_000, "r", "attempt")
    body = encode(Request("c", MemberId("id-n2"), trio.ring.epoch, None, call))
    hung_up, sent = asyncio.Event(), []
    tasks: list[asyncio.Task[None]] = []
    real_pop = node.store.pop

    async def hang_up() -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        hung_up.set()

    async def pop(*arguments: Any, **more: Any) -> Claims:
        claims = await real_pop(*arguments, **more)
        tasks.append(asyncio.create_task(hang_up()))
        return claims

    node.store.pop = pop  # type: ignore[method-assign]
    inbox = [{"type": "http.request", "body": body}]
    is_known = False

    async def receive() -> dict[str, Any]:
        nonlocal is_known
        if inbox:
            return inbox.pop()
        await hung_up.wait()
        is_known = True
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(is_known)

    async with asyncio.timeout(20):
        await InternalEndpoints(node).call({}, receive, send)
    assert not any(sent)
    if not sent:
        assert await bodies(trio.pop("n3", queue, 10_000, "another")) == [b"x"]


async def test_calls_that_share_a_request_are_answered_in_their_order(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    ring, to = trio.ring.epoch, MemberId("id-n2")

    def asked(call: Call, to: MemberId = to) -> Request:
        return Request("c", to, ring, None, call)

    push = PushCall(queue, (NewMessage(body=b"x"),), "p", "", 0)
    pop = PopCall(queue, 1, 0, 60_000, "r", "attempt")
    answers: list[bytes] = []

    def respond(body: bytes) -> bool:
        answers.append(body)
        return True

    (receive,) = InternalEndpoints(trio.wire.nodes["n2"]).receivers().values()
    for calls in ((asked(push), asked(push, MemberId("id-n3"))), (asked(pop),)):
        receive(encode(calls), respond)
        async with asyncio.timeout(20):
            while len(answers) < len(calls) % 2 + 1:
                await asyncio.sleep(0.001)
    pushed, not_taken, popped = (one.reply for body in answers for one in decode_responses(body))
    assert isinstance(pushed, Pushed)
    assert isinstance(not_taken, NotOwner)
    assert isinstance(popped, Popped)
    assert [message.body for message in popped.messages] == [b"x"]


async def test_what_was_claimed_for_a_shared_request_nobody_waits_for_is_given_back(
    trio: Trio,
) -> None:
    queue = trio.queue_of("n2")
    await trio.push("n2", queue)
    pop = PopCall(queue, 1, 0, 60_000, "r", "attempt")
    request = Request("c", MemberId("id-n2"), trio.ring.epoch, None, pop)
    (receive,) = InternalEndpoints(trio.wire.nodes["n2"]).receivers().values()
    answered = asyncio.Event()

    def respond(_: bytes) -> bool:
        answered.set()
        return False  # the connection is gone

    receive(encode((request,)), respond)
    await answered.wait()
    async with asyncio.timeout(20):
        (message,) = (await trio.pop("n2", queue, 5_000, "another")).messages
    assert message.deliveries == 1


async def test_a_call_that_fails_unforeseen_leaves_all_of_its_request_in_doubt(trio: Trio) -> None:
    async def fail(*_: object, **__: object) -> Any:
        raise RuntimeError("a bug")

    trio.wire.nodes["n2"].store.pop = fail  # type: ignore[method-assign]
    pop = PopCall(trio.queue_of("n2"), 1, 0, 60_000, "r", "attempt")
    request = Request("c", MemberId("id-n2"), trio.ring.epoch, None, pop)
    (receive,) = InternalEndpoints(trio.wire.nodes["n2"]).receivers().values()
    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def respond(body: bytes) -> bool:
        said.set_result(body)
        return True

    receive(encode((request, request)), respond)
    assert decode_responses(await asyncio.wait_for(said, 5)) == ()


async def test_a_claim_that_comes_after_it_was_given_back_is_given_back_again(trio: Trio) -> None:
    """The owner is slow, and answers before it knows that its caller has gone."""
    queue = trio.queue_of("n2")
    go_on, gave_back = asyncio.Event(), asyncio.Event()
    store = trio.wire.nodes["n1"].store
    real_unclaim = store.unclaim

    async def unclaim(*arguments: Any, **more: Any) -> Unclaimed:
        unclaimed = await real_unclaim(*arguments, **more)
        gave_back.set()
        return unclaimed

    store.unclaim = unclaim  # type: ignore[method-assign]
    asked: list[asyncio.Task[Response]] = []

    async def post(url: str, body: bytes, **_: Any) -> bytes:
        async def answer() -> Response:
            await go_on.wait()
            return await trio.wire.nodes["n2"].answer(decode_request(body))

        asked.append(asyncio.create_task(answer()))
        return encode(await asyncio.shield(asked[-1]))

    trio.wire.post = post  # type: ignore[assignment]
    await trio.push("n2", queue)
    poll = trio.pop("n1", queue, 60_000)
    while not asked:
        await asyncio.sleep(0)
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)
    async with asyncio.timeout(20):
        await gave_back.wait()
    go_on.set()
    claimed = (await asked[0]).reply
    assert isinstance(claimed, Popped)
    assert len(claimed.messages) == 1
    async with asyncio.timeout(10):
        (message,) = (await trio.pop("n2", queue, 60_000, "another")).messages
    assert message.deliveries == 1


async def test_polls_end_when_their_node_stops(trio: Trio) -> None:
    poll = trio.pop("n1", trio.queue_of("n2"), 60_000)
    await trio.waits_at("n2")
    trio.wire.nodes["n1"].end_polls()
    assert await bodies(poll) == []


WHEN = ("dead", "silent", "mute")


@pytest.mark.parametrize("when", WHEN)
async def test_an_owner_that_ends_at_any_step_of_a_push_leaves_the_message_once(
    trio: Trio, when: str
) -> None:
    queue = trio.queue_of("n2")
    getattr(trio.wire, when).add("n2")
    ids = await trio.push("n1", queue)
    stats = await trio.wire.nodes["n3"].store.stats(queue)
    assert (stats.ready, stats.pushed) == (1, 1)
    assert (await trio.wire.nodes["n3"].store.get(queue, ids[0])).body == b"x"


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("wait_ms", [0, 5_000])
async def test_an_owner_that_ends_at_any_step_of_a_pop_leaves_one_claim(
    trio: Trio, when: str, wait_ms: int
) -> None:
    """The forwarder answers with a receipt that is good, and nobody else has the message."""
    queue = trio.queue_of("n2")
    await trio.push("n2", queue)
    getattr(trio.wire, when).add("n2")
    (message,) = (await trio.pop("n1", queue, wait_ms)).messages
    assert message.deliveries == 1
    # Whatever the owner did after its caller was gone is over once it has answered again.
    await asyncio.sleep(0.05)
    store = trio.wire.nodes["n3"].store
    assert (await store.stats(queue)).in_flight == 1
    assert (await store.ack(queue, [message.receipt])).stale == ()
    assert (await store.stats(queue)).ready == 0


class TestDoubt:
    """What an owner may have done is never said to be certainly not done."""

    @pytest.fixture(params=["push", "pop", "poll"])
    def ask(self, request: pytest.FixtureRequest, trio: Trio) -> Callable[[], Awaitable[Any]]:
        queue = trio.queue_of("n2")
        if request.param == "push":
            return lambda: trio.push("n1", queue)
        return lambda: trio.pop("n1", queue, 0 if request.param == "pop" else 5_000)

    def refuse_with(self, trio: Trio, error: DistSyncError) -> None:
        async def refuse(*_: object, **__: object) -> Any:
            raise error

        store = trio.wire.nodes["n1"].store
        store.push = store.pop = refuse  # type: ignore[method-assign]

    @pytest.mark.parametrize("error", [RedisUnavailable(), RedisFull(), QueueFull()])
    @pytest.mark.parametrize("when", ["silent", "mute"])
    async def test_an_error_of_this_node_alone_leaves_it_unknown(
        self, trio: Trio, ask: Callable[[], Awaitable[Any]], when: str, error: DistSyncError
    ) -> None:
        self.refuse_with(trio, error)
        getattr(trio.wire, when).add("n2")
        with pytest.raises(OutcomeUnknown):
            await ask()

    @pytest.mark.parametrize("error", [RedisUnavailable(), RedisFull(), QueueFull()])
    async def test_without_a_doubt_it_is_told_as_it_is(
        self, trio: Trio, ask: Callable[[], Awaitable[Any]], error: DistSyncError
    ) -> None:
        self.refuse_with(trio, error)
        trio.wire.dead.add("n2")
        with pytest.raises(type(error)):
            await ask()

    async def test_an_owner_that_refused_for_want_of_redis_has_done_nothing(
        self, trio: Trio, ask: Callable[[], Awaitable[Any]]
    ) -> None:
        self.refuse_with(trio, RedisUnavailable())
        trio.wire.nodes["n2"] = QueueService("", Owners(trio.places["n2"], trio.wire))
        with pytest.raises(RedisUnavailable):
            await ask()

    async def test_what_is_wrong_with_a_request_is_told_in_any_case(
        self, trio: Trio, ask: Callable[[], Awaitable[Any]]
    ) -> None:
        self.refuse_with(trio, BadRequest())
        trio.wire.mute.add("n2")
        with pytest.raises(BadRequest):
            await ask()


async def test_what_an_owner_claimed_at_the_very_end_of_a_wait_is_handed_out(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    poll = trio.pop("n1", queue, 200)
    await trio.waits_at("n2")
    trio.wire.mute.add("n2")
    trio.wire.mute_s = 0.3
    await trio.push("n3", queue)
    assert await bodies(poll) == [b"x"]


@pytest.mark.parametrize("when", WHEN)
async def test_a_forwarder_that_ends_leaves_what_it_did_not_answer_to_be_claimed_again(
    trio: Trio, when: str
) -> None:
    """Its client asks another node under the same request id, or somebody else pops."""
    queue = trio.queue_of("n2")
    await trio.push("n2", queue)
    if when != "dead":
        poll = trio.pop("n1", queue, 5_000, "r")
        for _ in range(3 if when == "silent" else 200):
            await asyncio.sleep(0)
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)
    (message,) = (await trio.pop("n3", queue, 5_000, "r")).messages
    assert message.deliveries == 1
    assert (await trio.wire.nodes["n2"].store.ack(queue, [message.receipt])).stale == ()


async def test_signals_gather_while_one_is_on_its_way(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    owners = trio.wire.nodes["n1"]._owners
    assert owners is not None
    member = trio.places["n1"].member(MemberId("id-n2"))
    assert member is not None
    for _ in range(100):
        owners.signal(member, queue, 1)
    await asyncio.sleep(0.05)
    assert trio.wire.asked.count(("n2", "signal")) <= 2


@pytest.mark.parametrize("turns", range(12))
async def test_a_signal_that_comes_while_the_one_before_ends_is_sent(
    trio: Trio, turns: int
) -> None:
    queue = trio.queue_of("n2")
    owners = trio.wire.nodes["n1"]._owners
    member = trio.places["n1"].member(MemberId("id-n2"))
    assert owners is not None
    assert member is not None
    owners.signal(member, queue, 1)
    while not trio.wire.asked:
        await asyncio.sleep(0)
    for _ in range(turns):
        await asyncio.sleep(0)
    owners.signal(member, queue, 1)
    async with asyncio.timeout(20):
        while owners._signals or owners._signalling:
            await asyncio.sleep(0.001)


async def test_polls_are_watched_over_whatever_an_owner_answers(trio: Trio) -> None:
    queue = trio.queue_of("n2")
    poll = trio.pop("n1", queue, 60_000)
    await trio.waits_at("n2")
    answer = trio.wire.nodes["n2"].answer

    async def refuse(request: Request) -> Response:
        if isinstance(request.call, SignalCall):
            return Response(None, Refused("internal", "something nobody thought of", {}))
        return await answer(request)

    trio.wire.nodes["n2"].answer = refuse  # type: ignore[method-assign]
    async with asyncio.timeout(20):
        while trio.wire.asked.count(("n2", "signal")) < 2:
            await asyncio.sleep(0.01)
    poll.cancel()
