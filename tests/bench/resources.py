"""What DistSync's nodes take: memory, disk, time to restart, CPU while nothing happens.

1. three fresh nodes: CPU of all together while idle;
2. 100,000 locks held: resident memory of each node, CPU while idle again;
3. a million commands (acquire and release are one each): largest data directory of a node, looked
   at every half second;
4. every node in turn killed with -9 and started again: from starting the process until it is ready
   and knows all locks.

`--quick` is a hundredth of it and is held against no goal.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.arithmetic import Ratio, judge
from bench.dialects import DistSyncDialect
from bench.machine import directory_mib, process_cpu_s, resident_mib
from bench.options import Say
from bench.report import listed
from bench.systems import NODES, DistSync, running
from bench.wire import Answer, AnswerReader, post

CONNECTIONS = 128
HOLD_TTL_MS = 86_400_000
SAMPLE_S = 0.5
RESTART_TIMEOUT_S = 120.0
SETTLE_S = 2.0

RSS_GOAL_MIB = 300.0
RESTART_GOAL_S = 5.0
DISK_GOAL_MIB = 200.0
IDLE_GOAL_SHARE = 0.05


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much."""

    locks: int = 100_000
    commands: int = 1_000_000
    idle_s: float = 30.0
    holding_idle_s: float = 10.0


QUICK = Plan(locks=1_000, commands=10_000, idle_s=5.0, holding_idle_s=3.0)


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; lists are by node.

    `snapshots` names the newest one a node had on its disk when it was killed, None without one.
    """

    locks: int
    commands: int
    idle_s: float
    idle_cpu_share: float
    idle_holding_cpu_share: float
    empty_rss_mib: list[float]
    holding_rss_mib: list[float]
    after_commands_rss_mib: list[float]
    largest_data_mib: list[float]
    final_data_mib: list[float]
    snapshots: list[str | None]
    restart_s: list[float]
    commands_per_s: float


class FloodError(Exception):
    """A node refused what it must not refuse here."""


def measure(data_root: Path, plan: Plan, say: Say) -> Resources:
    """All of it, on three fresh nodes."""
    with running(cluster := DistSync(data_root / "resources")):
        time.sleep(SETTLE_S)  # the start itself is not idle time
        empty_rss_mib = [resident_mib(pid) for pid in cluster.pids()]
        idle_share = _idle_cpu_share(cluster, plan.idle_s)
        say(f"idle: {idle_share:.1%} of a core for {NODES} nodes")
        uvloop.run(_hold(cluster, plan.locks))
        _await_locks(cluster, plan.locks)
        holding_rss_mib = [resident_mib(pid) for pid in cluster.pids()]
        say(f"{plan.locks} locks held: {listed(holding_rss_mib)} MiB resident")
        holding_share = _idle_cpu_share(cluster, plan.holding_idle_s)
        say(f"idle while holding them: {holding_share:.1%} of a core")
        began_s = time.monotonic()
        largest_mib = uvloop.run(_command(cluster, plan.commands))
        took_s = time.monotonic() - began_s
        say(f"{plan.commands} commands in {took_s:.0f} s: at most {listed(largest_mib)} MiB")
        after_rss_mib = [resident_mib(pid) for pid in cluster.pids()]
        final_mib = _data_mib(cluster)
        snapshots = [_newest_snapshot(cluster.data_directory(node)) for node in range(NODES)]
        restart_s = [_restart_s(cluster, node, plan.locks) for node in range(NODES)]
        say(f"restarts with {plan.locks} locks: {listed(restart_s)} s")
    return Resources(
        locks=plan.locks,
        commands=plan.commands,
        idle_s=plan.idle_s,
        idle_cpu_share=idle_share,
        idle_holding_cpu_share=holding_share,
        empty_rss_mib=empty_rss_mib,
        holding_rss_mib=holding_rss_mib,
        after_commands_rss_mib=after_rss_mib,
        largest_data_mib=largest_mib,
        final_data_mib=final_mib,
        snapshots=snapshots,
        restart_s=restart_s,
        commands_per_s=plan.commands / took_s,
    )


def ratios(found: Resources, *, full: bool) -> list[Ratio]:
    """The figures beside their goals; a quick run has none but the idle CPU."""

    def line(what: str, value: float | None, goal: float, *, scales: bool = True) -> Ratio:
        return judge(what, value, goal=goal if full or not scales else None, bound="at_most")

    return [
        line(
            "share of a core for three idle nodes",
            found.idle_cpu_share,
            IDLE_GOAL_SHARE,
            scales=False,
        ),
        judge(
            f"the same while {found.locks} locks are held",
            found.idle_holding_cpu_share,
            goal=None,
            bound="at_most",
        ),
        line(
            f"MiB resident a node, {found.locks} locks held",
            max(found.holding_rss_mib),
            RSS_GOAL_MIB,
        ),
        line(
            f"MiB resident a node after {found.commands} commands more",
            max(found.after_commands_rss_mib),
            RSS_GOAL_MIB,
        ),
        line(
            f"MiB of a data directory during {found.commands} commands, at most",
            max(found.largest_data_mib),
            DISK_GOAL_MIB,
        ),
        line(
            f"seconds from start to ready with {found.locks} locks, from a snapshot, slowest",
            # Without a snapshot on the disk it would be another figure: a replay of the log.
            max(found.restart_s) if all(found.snapshots) else None,
            RESTART_GOAL_S,
        ),
    ]


class _Worker(asyncio.Protocol):
    """One connection that sends the next request when the last is answered."""

    def __init__(self, step: Callable[[Answer | None], bytes | None]) -> None:
        self._step = step
        self._reader = AnswerReader()
        self._transport: asyncio.WriteTransport | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        self._transport = transport  # type: ignore[assignment]
        self._go_on(None)

    def data_received(self, data: bytes) -> None:
        """Send the next request when the answer is complete."""
        answer = self._reader.feed(data)
        if answer is not None:
            self._go_on(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, or too early an end."""
        if not self.done.done():
            self.done.set_exception(FloodError(f"the node closed the connection: {exc}"))

    def _go_on(self, answer: Answer | None) -> None:
        try:
            request = self._step(answer)
        except FloodError as error:
            self.done.set_exception(error)
            return
        if self._transport is None or request is None:
            self.done.set_result(None)
            return
        self._transport.write(request)


async def _flood(
    cluster: DistSync, make_step: Callable[[int], Callable[[Answer | None], bytes | None]]
) -> None:
    host, port = cluster.targets()[cluster.leader()]
    loop = asyncio.get_running_loop()
    workers = [_Worker(make_step(index)) for index in range(CONNECTIONS)]
    transports = [
        (await loop.create_connection(functools.partial(_itself, worker), host, port))[0]
        for worker in workers
    ]
    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(_ended(worker))
    finally:
        for transport in transports:
            transport.close()


def _itself(worker: _Worker) -> _Worker:
    return worker


async def _ended(worker: _Worker) -> None:
    await worker.done


async def _hold(cluster: DistSync, locks: int) -> None:
    numbers = iter(range(locks))

    def make_step(_: int) -> Callable[[Answer | None], bytes | None]:
        def step(answer: Answer | None) -> bytes | None:
            if answer is not None and answer.status != 200:
                raise FloodError(f"acquire: {answer.status} {answer.body[:200]!r}")
            number = next(numbers, None)
            if number is None:
                return None
            body = b'{"name":"held/%06d","owner":"holder-%06d","ttl_ms":%d}'
            return post("/lock/acquire", body % (number, number, HOLD_TTL_MS))

        return step

    await _flood(cluster, make_step)


async def _command(cluster: DistSync, commands: int) -> list[float]:
    """Pairs until that many commands; gives the largest size of each node's data directory."""
    pairs = iter(range(commands // 2))
    largest_mib = _data_mib(cluster)

    def make_step(index: int) -> Callable[[Answer | None], bytes | None]:
        dialect = DistSyncDialect(f"worker-{index}", wait=False)
        dialect.name(f"passing/{index}")
        holding = False

        def step(answer: Answer | None) -> bytes | None:
            nonlocal holding
            if answer is not None and answer.status != 200:
                raise FloodError(f"pair: {answer.status} {answer.body[:200]!r}")
            if answer is not None and not holding:
                holding = True
                return dialect.release(dialect.granted(answer) or b"0")
            holding = False
            return dialect.acquire() if next(pairs, None) is not None else None

        return step

    async def sample() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for node, size_mib in enumerate(_data_mib(cluster)):
                largest_mib[node] = max(largest_mib[node], size_mib)

    sampling = asyncio.create_task(sample())
    try:
        await _flood(cluster, make_step)
    finally:
        sampling.cancel()
    return largest_mib


def _data_mib(cluster: DistSync) -> list[float]:
    return [directory_mib(cluster.data_directory(node)) for node in range(NODES)]


def _newest_snapshot(data_directory: Path) -> str | None:
    names = [path.name for path in data_directory.glob("member/snapshot-*")]
    return max(names, default=None)


def _idle_cpu_share(cluster: DistSync, seconds: float) -> float:
    before = sum(process_cpu_s(pid) for pid in cluster.pids())
    began_s = time.monotonic()
    time.sleep(seconds)  # the time that is measured
    took_s = time.monotonic() - began_s
    return (sum(process_cpu_s(pid) for pid in cluster.pids()) - before) / took_s


def _await_locks(cluster: DistSync, locks: int) -> None:
    deadline_s = time.monotonic() + RESTART_TIMEOUT_S
    waiting_for = set(range(NODES))
    while waiting_for:
        if time.monotonic() > deadline_s:
            raise FloodError(f"nodes {sorted(waiting_for)} do not know all {locks} locks")
        for node in list(waiting_for):
            if _knows(cluster, node, locks):
                waiting_for.discard(node)
        time.sleep(0.02)


def _restart_s(cluster: DistSync, node: int, locks: int) -> float:
    cluster.kill(node)
    began_s = time.monotonic()
    cluster.spawn(node)
    while not _knows(cluster, node, locks):
        if time.monotonic() - began_s > RESTART_TIMEOUT_S:
            raise FloodError(f"node {node} did not come back with {locks} locks")
        time.sleep(0.01)
    took_s = time.monotonic() - began_s
    cluster.await_roles()
    return took_s


def _knows(cluster: DistSync, node: int, locks: int) -> bool:
    status = cluster.status(node)
    return status is not None and bool(status["ready"]) and int(status["locks"]) >= locks


def points(found: Resources) -> list[dict[str, Any]]:
    """For the report."""
    return [msgspec.to_builtins(found)]
