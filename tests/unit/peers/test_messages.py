"""Messages between members over real connections: a link on one side, a peer port on the other."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from distsync_node.errors import ShuttingDown
from distsync_node.peers import inbound, links, outbound
from distsync_node.peers.inbound import Respond, receive_envelopes
from distsync_node.peers.links import Link
from distsync_node.peers.outbound import Target
from distsync_node.peers.wire import MESSAGES_PATH, encode
from distsync_node.raft.types import LogIndex, MemberId
from distsync_node.replica.types import Answer, AnswerCode, Envelope, HashReport, PeerMessage
from unit.peer_port import PeerPort
from waiting_for import eventually

SECRET = "secret"
LOCALHOST = "127.0.0.1"


def message(number: int) -> HashReport:
    return HashReport(LogIndex(number), number)


def numbers(messages: tuple[PeerMessage, ...]) -> list[int]:
    return [m.index for m in messages if isinstance(m, HashReport)]


def answer(*messages: HashReport) -> Answer:
    return Answer(AnswerCode.ACCEPTED, "k", MemberId("b"), LogIndex(1), (1, 1), messages)


class Receiver(PeerPort):
    """A peer port; `take` decides how envelopes are answered."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []
        self.held: list[Respond] = []
        self.take: Callable[[Respond], object] = lambda respond: respond(answer())

    def receive(self, envelope: Envelope, respond: Respond) -> None:
        self.envelopes.append(envelope)
        self.take(respond)

    @property
    def received(self) -> list[int]:
        return [number for envelope in self.envelopes for number in numbers(envelope.messages)]

    async def __aenter__(self) -> Receiver:
        self.serve(receive_envelopes(self.receive), SECRET)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


class Sender:
    """A link and what it got back."""

    def __init__(self, secret: str = SECRET) -> None:
        self.answers: list[Answer] = []
        self.link = Link(
            MemberId("b"),
            lambda url: Target(url, secret, "n1"),
            lambda to, messages: Envelope("k", MemberId("a"), to, (1, 1), messages),
            self.answers.append,
        )

    def send(self, *many: int) -> None:
        for number in many:
            self.link.push(message(number))
        self.link.kick()

    @property
    def answered(self) -> list[int]:
        return [number for one in self.answers for number in numbers(one.messages)]


@pytest.fixture
async def sender() -> AsyncIterator[Sender]:
    sender = Sender()
    yield sender
    await sender.link.close()


async def test_messages_of_one_moment_share_a_request_and_its_answer_brings_others(
    receiver: Receiver, sender: Sender
) -> None:
    receiver.take = lambda respond: respond(answer(message(9)))
    sender.link.address(receiver.url)
    sender.send(1, 2, 3)
    await eventually(lambda: sender.answers)
    assert receiver.received == [1, 2, 3]
    assert len(receiver.envelopes) == 1
    assert sender.answered == [9]


async def test_a_connection_is_used_again(receiver: Receiver, sender: Sender) -> None:
    sender.link.address(receiver.url)
    for number in range(20):
        sender.send(number)
        await eventually(lambda number=number: len(sender.answers) == number + 1)
    assert receiver.received == list(range(20))
    assert len(receiver.server.server_state.connections) == 1


async def test_requests_run_beside_one_whose_answer_is_held_back(
    receiver: Receiver, sender: Sender
) -> None:
    receiver.take = receiver.held.append
    sender.link.address(receiver.url)
    for number in range(1, 4):
        sender.send(number)
        await eventually(lambda number=number: len(receiver.held) == number)
    for number, respond in enumerate(receiver.held):
        respond(answer(message(number)))
    await eventually(lambda: len(sender.answers) == 3)
    assert sorted(sender.answered) == [0, 1, 2]


async def test_a_held_answer_leaves_with_the_next_message_for_its_sender(sender: Sender) -> None:
    answers: list[tuple[PeerMessage, ...]] = []
    sender.link.hold(lambda: answers.append(sender.link.take()))
    assert answers == []
    sender.send(5)
    assert [numbers(messages) for messages in answers] == [[5]]


async def test_a_held_answer_leaves_empty_when_there_is_nothing_to_say_in_time(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "HOLD_ANSWER_SECONDS", 0.01)
    answers: list[tuple[PeerMessage, ...]] = []
    sender.link.hold(lambda: answers.append(sender.link.take()))
    await eventually(lambda: answers)
    assert answers == [()]
    sender.send(5)  # nobody is there to take it along any more
    assert answers == [()]


async def test_what_a_held_answer_cannot_take_along_leaves_another_way(
    receiver: Receiver, sender: Sender
) -> None:
    """Its connection has broken meanwhile, as when the sender was killed and started again."""
    sender.link.address(receiver.url)
    lost: list[tuple[PeerMessage, ...]] = []

    def to_nobody() -> None:
        lost.append(sender.link.take())
        sender.link.put_back(lost[-1])

    sender.link.hold(to_nobody)
    sender.link.hold(to_nobody)
    sender.send(1, 2)
    await eventually(lambda: receiver.received)
    assert receiver.received == [1, 2]
    assert len(lost) == 2


async def test_an_answer_to_a_broken_connection_is_not_taken_for_sent(
    receiver: Receiver, sender: Sender
) -> None:
    receiver.take = receiver.held.append
    sender.link.address(receiver.url)
    sender.send(1)
    await eventually(lambda: receiver.held)
    await sender.link.close()
    connections = receiver.server.server_state.connections
    await eventually(lambda: not connections)
    assert receiver.held[0](answer()) is False


async def test_a_link_that_cannot_keep_up_loses_the_oldest(sender: Sender) -> None:
    sender.send(*range(300))
    waiting = numbers(sender.link.take())
    assert waiting[-1] == 299
    assert len(waiting) < 300


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "no-such-host.invalid", LOCALHOST])
async def test_an_address_where_nobody_listens_costs_messages_and_no_more(
    host: str, receiver: Receiver, sender: Sender
) -> None:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(context))
    with socket.create_server((LOCALHOST, 0)) as listener:
        port = listener.getsockname()[1]
    sender.link.address(f"http://{host}:{port}")
    sender.send(1)
    await eventually(lambda: not sender.link.has_waiting)
    sender.link.address(receiver.url)

    def sent_anew() -> bool:
        sender.send(2)
        return bool(sender.answers)

    await eventually(sent_anew)
    assert set(receiver.received) == {2}
    assert failures == []


async def test_a_receiver_that_says_nothing_is_given_up(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 0.5)
    receiver.take = receiver.held.append
    sender.link.address(receiver.url)
    for number in range(3 * links.MAX_CONNECTIONS):  # more than may be in flight
        sender.send(number)
        await eventually(lambda number=number: len(receiver.held) == number + 1)
    receiver.take = lambda respond: respond(answer())
    monkeypatch.setattr(outbound, "REQUEST_SECONDS", 60.0)
    sender.send(99)
    await eventually(lambda: sender.answers)
    receiver.held[0](answer(message(7)))  # too late: its connection is gone
    sender.send(100)
    await eventually(lambda: len(sender.answers) == 2)
    assert sender.answered == []


async def test_an_answer_that_cannot_be_read_takes_its_connection_along(sender: Sender) -> None:
    """Whatever listens there may not be a node; what it says next is not waited for."""
    connections: list[int] = []

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(0)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split()[0]))
                connections[-1] += 1
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n\xc1")
        writer.close()

    server = await asyncio.start_server(babble, LOCALHOST, 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        sender.link.address(f"http://{host}:{port}")
        for number in range(3):
            sender.send(number)
            await eventually(lambda number=number: sum(connections) == number + 1)
        await sender.link.close()
    assert sender.answers == []
    assert connections == [1, 1, 1]


async def test_the_wrong_secret_is_refused(receiver: Receiver) -> None:
    stranger = Sender(secret="another")
    stranger.link.address(receiver.url)
    stranger.send(1)
    await eventually(lambda: not stranger.link.has_waiting)
    stranger.send(2)
    await eventually(lambda: not stranger.link.has_waiting)
    assert receiver.envelopes == []
    assert stranger.answers == []
    await stranger.link.close()


async def test_a_node_that_has_stopped_answers_503(receiver: Receiver, sender: Sender) -> None:
    def stopped(_respond: Respond) -> None:
        raise ShuttingDown

    receiver.take = stopped
    assert await exchange(receiver, encode(sender.link._wrap(MemberId("b"), ()))) == 503


@pytest.mark.parametrize(
    "body", [b"\xc1", b"", msgspec.msgpack.encode(["k", "a"]), msgspec.msgpack.encode({"a": 1})]
)
async def test_what_is_no_envelope_is_400_and_changes_nothing(
    body: bytes, receiver: Receiver
) -> None:
    assert await exchange(receiver, body) == 400
    assert receiver.envelopes == []


async def test_where_files_run_short_messages_pass_and_calls_are_refused(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "has_room_for_call", lambda _transport: False)
    sender.link.address(receiver.url)
    sender.send(1)
    await eventually(lambda: sender.answers)
    assert await exchange(receiver, b"", "/locks/submit") == 429


async def exchange(receiver: Receiver, body: bytes, path: str = MESSAGES_PATH) -> int:
    """POST that body; return the status of the answer, after which the port closes."""
    host, port = receiver.listener.getsockname()
    reader, writer = await asyncio.open_connection(host, port)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {SECRET}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    content = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return int(content.split()[1])
