"""The load client against a small server on loopback that grants, refuses and breaks."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from bench import queue_load
from bench.driver import LoadFailedError, deadline_s, run_load
from bench.load import LoadSpec, measure

Reply = Callable[[str, int], tuple[int, bytes] | None]


def grant(path: str, number: int) -> tuple[int, bytes]:
    return 200, b'{"token":%d}' % number


@contextlib.asynccontextmanager
async def server(reply: Reply) -> AsyncIterator[tuple[str, int]]:
    """Answers each request by its path and running number; None closes the connection."""
    numbers = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal numbers
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                numbers += 1
                answer = reply(head.split()[1].decode(), numbers)
                if answer is None:
                    break
                status, body = answer
                writer.write(
                    b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)
                )
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()


def spec_for(address: tuple[str, int], **changes: object) -> LoadSpec:
    fields: dict[str, object] = {
        "dialect": "distsync",
        "targets": [address],
        "clients": 3,
        "run_id": "test",
        "duration_s": 0.5,
        "warmup_s": 0.05,
        **changes,
    }
    return LoadSpec(**fields)  # type: ignore[arg-type]


async def test_pairs_are_counted_in_the_window_only(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def reply(path: str, number: int) -> tuple[int, bytes]:
        asked.append(path)
        return grant(path, number)

    async with server(reply) as address:
        result = await measure(spec_for(address, warmup_s=0.3))
    acquires, releases = asked.count("/lock/acquire"), asked.count("/lock/release")
    assert 0 < result.pairs < releases  # those of the warm-up were served and not counted
    assert releases <= acquires <= releases + 3  # each client has one pair under way
    assert result.pairs_per_s == pytest.approx(result.pairs / result.window_s)
    assert result.p50_ms is not None
    assert result.p99_ms is not None
    assert 0 < result.p50_ms <= result.p99_ms
    assert result.errors == {}
    assert capsys.readouterr().out == "running\n"


async def test_a_refusal_is_an_error_with_its_code_and_no_pair() -> None:
    async with server(lambda path, number: (409, b'{"code":"lock_held"}')) as address:
        result = await measure(spec_for(address))
    assert result.pairs == 0
    assert result.p50_ms is None
    assert set(result.errors) == {"acquire: 409 lock_held"}


async def test_a_broken_connection_is_an_error_and_its_client_goes_on() -> None:
    async with server(lambda path, n: None if n % 50 == 0 else grant(path, n)) as address:
        result = await measure(spec_for(address, duration_s=2.0))
    assert result.pairs > 50
    assert sum(result.errors.values()) > 0
    assert all(reason.endswith("connection lost") for reason in result.errors)


async def test_a_silent_server_is_given_up_for_the_next_one() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with silent, server(grant) as address:
        targets = [silent.sockets[0].getsockname(), address]
        changes = {"targets": targets, "first_target": 0, "request_timeout_s": 0.02}
        result = await measure(spec_for(address, warmup_s=1.0, **changes))
    assert result.pairs > 0
    assert result.warmup_errors["acquire: timeout"] >= 3


async def test_a_closed_port_is_passed_over() -> None:
    closed = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    nobody = closed.sockets[0].getsockname()
    closed.close()
    await closed.wait_closed()
    async with server(grant) as address:
        targets = [nobody, address]
        result = await measure(spec_for(address, targets=targets, first_target=0, warmup_s=1.0))
    assert result.pairs > 0
    assert result.warmup_errors == {"connect: refused": 3}


async def test_a_failover_run_tells_the_silence_and_ends_by_itself() -> None:
    quiet_until_s = 0.0

    def reply(path: str, number: int) -> tuple[int, bytes] | None:
        return None if time.monotonic() < quiet_until_s else grant(path, number)

    def kill() -> float:
        nonlocal quiet_until_s
        killed_at_s = time.monotonic()
        quiet_until_s = killed_at_s + 0.3
        return killed_at_s

    async with server(reply) as address:
        spec = spec_for(address, duration_s=30.0, stop_after_grants=50)
        result = await asyncio.to_thread(run_load, spec, kill)
    assert result.silence_s is not None
    assert 0.3 <= result.silence_s < 5
    assert result.window_s < 25
    assert result.pairs > 0


async def test_a_load_that_cannot_begin_is_told() -> None:
    async with server(grant) as address:
        spec = spec_for(address, dialect="no such dialect")
        with pytest.raises(LoadFailedError, match="before its window") as told:
            await asyncio.to_thread(run_load, spec)
    assert "no such dialect: no such dialect" in str(told.value)  # the end of its stderr


@pytest.mark.parametrize("warmup_s", [0.0, 600.0])
async def test_a_load_that_hangs_is_killed_at_its_deadline(warmup_s: float) -> None:
    async with server(grant) as address:
        spec = spec_for(address, warmup_s=warmup_s, duration_s=600.0)
        began_s = time.monotonic()
        with pytest.raises(LoadFailedError, match="killed after 1 s"):
            await asyncio.to_thread(run_load, spec, kill_after_s=1.0)
    assert time.monotonic() - began_s < 20


def test_the_deadline_is_a_few_times_what_was_planned() -> None:
    short = spec_for(("127.0.0.1", 1), warmup_s=0.5, duration_s=2.5)
    assert 10 < deadline_s(short) < 60
    long = spec_for(("127.0.0.1", 1), warmup_s=10.0, duration_s=90.0)
    assert 200 < deadline_s(long) < 500


def queue_reply(path: str, number: int) -> tuple[int, bytes]:
    if path == "/queue/push":
        return 200, b'{"ids":["a"]}'
    if path == "/queue/pop":
        one = b'{"id":"a","body":"%020d","receipt":"r"}' % time.monotonic_ns()
        return 200, b'{"messages":[%s,%s]}' % (one, one)
    return 200, b'{"count":2,"dead":[]}'


async def test_messages_count_when_their_ack_is_answered() -> None:
    asked: list[str] = []

    def reply(path: str, number: int) -> tuple[int, bytes]:
        asked.append(path)
        return queue_reply(path, number)

    async with server(reply) as address:
        result = await queue_load.measure(spec_for(address, dialect="batches", shared_names=1))
    assert set(asked) == {"/queue/push", "/queue/pop", "/queue/ack"}
    assert 0 < result.pairs < 2 * asked.count("/queue/ack")
    assert result.p50_ms is not None
    assert 0 <= result.p50_ms < 1_000
    assert result.errors == {}


async def test_messages_of_workers_count_when_the_next_pop_has_acked_them() -> None:
    asked: list[str] = []

    def reply(path: str, number: int) -> tuple[int, bytes]:
        asked.append(path)
        status, body = queue_reply(path, number)
        return status, body.replace(b"]}", b'],"stale":[]}') if path == "/queue/pop" else body

    async with server(reply) as address:
        result = await queue_load.measure(spec_for(address, dialect="workers", shared_names=1))
    assert set(asked) == {"/queue/push", "/queue/pop"}
    assert 0 < result.pairs <= 2 * asked.count("/queue/pop")
    assert result.errors == {}


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/queue/push", b'{"code":"redis_unavailable"}', "push: 503 redis_unavailable"),
        ("/queue/pop", b'{"messages":[]}', "pop: 200"),
        ("/queue/ack", b'{"count":1}', "ack: 200"),
    ],
)
async def test_what_a_queue_refuses_is_an_error(path: str, answer: bytes, reason: str) -> None:
    status = int(reason.split()[1])

    def reply(asked: str, number: int) -> tuple[int, bytes]:
        return (status, answer) if asked == path else queue_reply(asked, number)

    async with server(reply) as address:
        result = await queue_load.measure(spec_for(address, dialect="singles", shared_names=1))
    assert result.pairs == 0
    assert set(result.errors) == {reason}


async def test_a_failover_of_queues_ends_when_all_clients_are_served_again() -> None:
    quiet_until_s = 0.0

    def reply(path: str, number: int) -> tuple[int, bytes] | None:
        return None if time.monotonic() < quiet_until_s else queue_reply(path, number)

    def kill() -> float:
        nonlocal quiet_until_s
        killed_at_s = time.monotonic()
        quiet_until_s = killed_at_s + 0.3
        return killed_at_s

    async with server(reply) as address:
        spec = spec_for(
            address, dialect="polls", duration_s=30.0, shared_names=3, stop_after_grants=3
        )
        result = await asyncio.to_thread(run_load, spec, kill, module="bench.queue_load")
    assert result.silence_s is not None
    assert 0.3 <= result.silence_s < 5
    assert result.window_s < 25
