"""What a client of queues waits for: a wake-up, a node that was killed, a queue of a million.

- Wake-up: nothing else runs; a poll is parked on a node, then a message is pushed through the same
  node or another one. From handing the push to the socket until the poll's answer is read.
- Failover: 16 clients with a queue each ask one node, which is killed at a random moment; they go
  on to the other nodes, and give up a request after half a second. From the kill until the last of
  them has pushed, popped (by a long poll) and acked again.
- A million: the same calls of the queue store on an empty queue and on a full one, in turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

from bench.arithmetic import Ratio, hold_against, judge, percentile
from bench.dialects import make_queue_dialect
from bench.driver import run_load, unique_run_id
from bench.failover import (
    CLIENTS,
    GOAL_S,
    LONGEST_S,
    WARMUP_S,
    Failover,
    gathered,
    kill_soon,
)
from bench.load import LoadSpec
from bench.options import Say
from bench.queue_million import compare
from bench.systems import NODES, Cluster, DistSync, SystemFailedError, running
from bench.wire import Answer, AnswerReader
from redis_server import RedisServer, free_port

ANSWER_TIMEOUT_S = 15.0
REQUEST_TIMEOUT_S = 0.5
QUEUES = 6
# Long enough for a poll to be parked, and never in step with anything that runs by the clock.
PARKED_S = (0.02, 0.05)
WAKEUP_GOAL_MS = 10.0
MILLION_GOAL = 1.5

Where = Literal["same node", "other node"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How often."""

    wakeups: int = 300
    kills: int = 10
    messages: int = 1_000_000
    calls: int = 3_000


class Wakeup(msgspec.Struct, frozen=True, kw_only=True):
    """Wake-ups of polls by pushes through a node."""

    where: Where
    count: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


class Million(msgspec.Struct, frozen=True, kw_only=True):
    """p99 of a call, milliseconds."""

    messages: int
    calls: int
    empty_push_ms: float
    full_push_ms: float
    empty_pop_ms: float
    full_pop_ms: float


class Connection:
    """One connection to a node, one request outstanding."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, target: tuple[str, int]) -> Connection:
        """Connect."""
        return cls(*await asyncio.open_connection(*target))

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for its answer."""
        self._writer.write(request)
        answers = AnswerReader()
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while data := await self._reader.read(65_536):
                if (answer := answers.feed(data)) is not None:
                    return answer
        raise SystemFailedError("a node closed the connection")

    def close(self) -> None:
        """Close it."""
        self._writer.close()


def wakeups(data_root: Path, count: int, say: Say) -> list[Wakeup]:
    """Wake-ups on an idle cluster, by the same node and by another one."""
    directory = data_root / "wakeups"
    found = []
    with (
        RedisServer(directory / "redis", port=free_port()) as server,
        running(DistSync(directory, redis_url=server.url)) as cluster,
    ):
        distances: tuple[tuple[Where, int], ...] = (("same node", 0), ("other node", 1))
        for where, distance in distances:
            times_ms = uvloop.run(_wakeups(cluster, distance, count))
            one = Wakeup(
                where=where,
                count=count,
                p50_ms=percentile(times_ms, 0.5),
                p99_ms=percentile(times_ms, 0.99),
                longest_ms=max(times_ms),
            )
            say(
                f"wake-up, pushed on the {where}: p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms,"
                f" longest {one.longest_ms:.2f} ms"
            )
            found.append(one)
    return found


def failover(data_root: Path, kills: int, say: Say) -> Failover:
    """Kills of each node in turn."""
    directory = data_root / "failover"
    generator = random.Random()
    times_s: list[float | None] = []
    errors = []
    with (
        RedisServer(directory / "redis", port=free_port()) as server,
        running(DistSync(directory, redis_url=server.url)) as cluster,
    ):
        for number in range(kills):
            served_s, failed = _kill_once(cluster, number % NODES, generator)
            times_s.append(served_s)
            errors.append(failed)
            shown = "no figure" if served_s is None else f"{served_s:.3f} s"
            say(f"kill {number + 1:>2}  all clients served again after {shown}")
    return gathered("distsync", "queues of the killed node's clients", times_s, errors)


def million(data_root: Path, messages: int, calls: int, say: Say) -> Million:
    """Calls on an empty queue and on a full one."""
    with RedisServer(data_root / "million" / "redis") as server:
        empty, full = uvloop.run(compare(server, messages, calls))
    one = Million(
        messages=messages,
        calls=calls,
        empty_push_ms=percentile(empty.push_ms, 0.99),
        full_push_ms=percentile(full.push_ms, 0.99),
        empty_pop_ms=percentile(empty.pop_ms, 0.99),
        full_pop_ms=percentile(full.pop_ms, 0.99),
    )
    say(
        f"p99 with {messages} messages queued and none: push {one.full_push_ms:.2f} and"
        f" {one.empty_push_ms:.2f} ms, pop {one.full_pop_ms:.2f} and {one.empty_pop_ms:.2f} ms"
    )
    return one


def ratios(
    woken: list[Wakeup], killed: Failover | None, million: Million | None, *, full: bool
) -> list[Ratio]:
    """The figures beside their goals; a quick run queues fewer messages than the goal names."""
    lines = [
        judge(
            f"ms from push to a parked poll's answer, {one.where}, p99",
            one.p99_ms,
            goal=WAKEUP_GOAL_MS,
            bound="at_most",
        )
        for one in woken
    ]
    if killed:
        # A repetition that never came back must not vanish from the median.
        median_s = killed.median_s if None not in killed.times_s else None
        what = f"seconds until queues serve again after kill -9, median of {len(killed.times_s)}"
        lines.append(judge(what, median_s, goal=GOAL_S, bound="at_most"))
        lines.append(judge("the same, longest", killed.longest_s, goal=None, bound="at_most"))
    if million:
        goal = MILLION_GOAL if full else None
        for what, ours, theirs in (
            ("push", million.full_push_ms, million.empty_push_ms),
            ("pop", million.full_pop_ms, million.empty_pop_ms),
        ):
            name = f"p99 of a {what} with {million.messages} messages queued: over none"
            lines.append(hold_against(name, ours, theirs, goal=goal, bound="at_most"))
    return lines


async def _wakeups(cluster: Cluster, distance: int, count: int) -> list[float]:
    generator = random.Random()
    polling = [await Connection.open(target) for target in cluster.targets()]
    pushing = [await Connection.open(target) for target in cluster.targets()]
    # Several queues, so that it does not depend on where one of them is at home.
    dialects = [make_queue_dialect("polls") for _ in range(QUEUES)]
    for number, dialect in enumerate(dialects):
        dialect.name(f"wake-up-{distance}-{number}")
    times_ms = []
    for number in range(-QUEUES, count):  # the first ones, which make the queues, do not count
        dialect = dialects[number % QUEUES]
        # One node further in each cycle of the queues, so that each queue meets each node.
        node = (number + number // QUEUES) % NODES
        poll = asyncio.create_task(_poll(polling[node], dialect.pop()))
        await asyncio.sleep(generator.uniform(*PARKED_S))
        pushed_s = time.monotonic()
        pushed = await pushing[(node + distance) % NODES].ask(dialect.push(0))
        answer, answered_s = await poll
        receipts, _ = dialect.popped(answer)
        if not dialect.pushed(pushed) or not receipts:
            raise SystemFailedError(f"no wake-up: {pushed}, {answer}")
        await polling[node].ask(dialect.ack(receipts))
        if number >= 0:
            times_ms.append((answered_s - pushed_s) * 1e3)
    for connection in (*polling, *pushing):
        connection.close()
    return times_ms


async def _poll(connection: Connection, request: bytes) -> tuple[Answer, float]:
    answer = await connection.ask(request)
    return answer, time.monotonic()


def _kill_once(
    cluster: Cluster, victim: int, generator: random.Random
) -> tuple[float | None, dict[str, int]]:
    spec = LoadSpec(
        dialect="polls",
        targets=cluster.targets(),
        first_target=victim,
        clients=CLIENTS,
        run_id=unique_run_id("kill"),
        duration_s=LONGEST_S,
        warmup_s=WARMUP_S,
        shared_names=CLIENTS,
        request_timeout_s=REQUEST_TIMEOUT_S,
        stop_after_grants=CLIENTS,
    )
    result = run_load(
        spec, lambda: kill_soon(cluster, victim, generator), module="bench.queue_load"
    )
    cluster.restart(victim)
    return result.silence_s, result.errors
