"""What happens to cached values when a node is killed, and to memory when there are too many.

- Failover: 600 values are written through one node, which then owns them; every node is home of a
  third. It is killed with -9 (the owner), or another one is (a home of values that it does not
  own). From then on 16 clients at the third node read each value and write it again. The figure is
  the time until the last of them was both read and written; a value that is read as another one
  than was acknowledged, or as missing, is lost.
- Memory: values of 10 KiB, ten times `max_bytes` of them, are written and read through all nodes.
  The figure is by how much the resident memory of the largest node grew, over `max_bytes`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

from bench.arithmetic import Ratio, judge, middle
from bench.driver import unique_run_id
from bench.machine import resident_mib
from bench.options import Say
from bench.queue_delays import Connection
from bench.report import listed
from bench.systems import NODES, Cluster, DistSync, SystemFailedError, ask_json, running
from bench.wire import Answer, get, post
from redis_server import RedisServer, free_port

VALUES = 600
CLIENTS = 16
LONGEST_S = 30.0
PAUSE_S = 0.01
FAILOVER_GOAL_S = 4.0
MEMORY_GOAL = 1.25
LARGE_BYTES = 10 * 1024
TIMES_MAX_BYTES = 10
MIB = 1 << 20

Who = Literal["owner", "home"]
Step = Callable[[Connection, str, str], Awaitable[None]]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How often and how much."""

    kills: int = 5
    max_bytes: int = 64 * MIB


class CacheFailover(msgspec.Struct, frozen=True, kw_only=True):
    """Kills of one kind; None in `times_s` is one after which a value was not served in time."""

    who: Who
    values: int
    times_s: list[float | None]
    lost: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Resident memory of each node, before and at most."""

    max_bytes: int
    values_mib: float
    before_mib: list[float]
    largest_mib: list[float]

    @property
    def growth(self) -> float:
        """Of the node that grew most, over `max_bytes`."""
        pairs = zip(self.before_mib, self.largest_mib, strict=True)
        return max(after - before for before, after in pairs) * MIB / self.max_bytes


def failovers(data_root: Path, kills: int, say: Say) -> list[CacheFailover]:
    """Kills of owners and of homes, each node in turn."""
    found = []
    with (
        RedisServer(data_root / "failover" / "redis", port=free_port()) as server,
        running(DistSync(data_root / "failover", redis_url=server.url)) as cluster,
    ):
        kinds: tuple[Who, ...] = ("owner", "home")
        for who in kinds:
            times_s: list[float | None] = []
            lost = 0
            for number in range(kills):
                writing = number % NODES
                victim = writing if who == "owner" else (writing + 1) % NODES
                took_s, missing = uvloop.run(_kill_once(cluster, who, writing, victim))
                cluster.restart(victim)  # by this thread: a node dies with the one that started it
                times_s.append(took_s)
                lost += missing
                shown = "no figure" if took_s is None else f"{took_s:.3f} s"
                say(f"kill of the {who} {number + 1}: all served again after {shown}, lost {lost}")
            found.append(CacheFailover(who=who, values=VALUES, times_s=times_s, lost=lost))
    return found


async def _kill_once(
    cluster: Cluster, who: Who, writing: int, victim: int
) -> tuple[float | None, int]:
    third = (writing + 2) % NODES
    run_id = unique_run_id(who)
    values = {f"{run_id}-{number}": f"{number}" for number in range(VALUES)}
    await _each(cluster.targets()[writing], values, _write)
    killed_at_s = time.monotonic()
    cluster.kill(victim)
    lost: list[str] = []

    async def serve(connection: Connection, key: str, value: str) -> None:
        found = await _until_served(connection, get(f"/cache/{key}"), ends=(200, 404, 410))
        if found.status != 200 or msgspec.json.decode(found.body)["value"] != value:
            lost.append(key)
        await _write(connection, key, value)

    took_s: float | None = None
    try:
        async with asyncio.timeout(LONGEST_S):
            await _each(cluster.targets()[third], values, serve)
        took_s = time.monotonic() - killed_at_s
    except TimeoutError:
        pass
    except OSError:
        cluster.check_alive(victim)
        raise
    return took_s, len(lost)


async def _write(connection: Connection, key: str, value: str) -> None:
    body = msgspec.json.encode({"value": value})
    await _until_served(connection, post(f"/cache/{key}", body, method="PUT"), ends=(200,))


async def _until_served(connection: Connection, request: bytes, ends: tuple[int, ...]) -> Answer:
    while (answer := await connection.ask(request)).status not in ends:
        await asyncio.sleep(PAUSE_S)
    return answer


async def _each(target: tuple[str, int], values: dict[str, str], do: Step) -> None:
    """Do something with each value, over some connections to one node."""
    left = iter(values.items())

    async def work() -> None:
        connection = await Connection.open(target)
        try:
            for key, value in left:
                await do(connection, key, value)
        finally:
            connection.close()

    await asyncio.gather(*(work() for _ in range(CLIENTS)))


def memory(data_root: Path, max_bytes: int, say: Say) -> Memory:
    """Ten times `max_bytes` of values, written and read through all nodes."""
    options = ("--cache-max-bytes", str(max_bytes))
    values = {
        f"large-{number}": "x" * LARGE_BYTES
        for number in range(TIMES_MAX_BYTES * max_bytes // LARGE_BYTES)
    }
    with (
        RedisServer(data_root / "memory" / "redis", port=free_port()) as server,
        running(DistSync(data_root / "memory", redis_url=server.url, options=options)) as cluster,
    ):
        before = [resident_mib(pid) for pid in cluster.pids()]
        largest = uvloop.run(_fill(cluster, values))
        held = [ask_json(port, "/cache") or {} for _, port in cluster.targets()]
    found = Memory(
        max_bytes=max_bytes,
        values_mib=len(values) * LARGE_BYTES / MIB,
        before_mib=before,
        largest_mib=largest,
    )
    say(
        f"{found.values_mib:.0f} MiB of values through nodes of {max_bytes / MIB:.0f} MiB: resident"
        f" {listed(before)} -> {listed(largest)} MiB; they say that they hold"
        f" {listed([one.get('bytes', 0) / MIB for one in held])} MiB"
    )
    return found


async def _fill(cluster: Cluster, values: dict[str, str]) -> list[float]:
    largest = [0.0] * NODES

    async def sample() -> None:
        while True:
            for node, pid in enumerate(cluster.pids()):
                largest[node] = max(largest[node], resident_mib(pid))
            await asyncio.sleep(0.2)  # between samples: reading /proc takes CPU from the nodes

    async def read(connection: Connection, key: str, value: str) -> None:
        answer = await _until_served(connection, get(f"/cache/{key}"), ends=(200, 404))
        if answer.status != 200:
            raise SystemFailedError(f"{key} is gone: {value[:10]}")

    sampling = asyncio.create_task(sample())
    try:
        parts = [dict(list(values.items())[node::NODES]) for node in range(NODES)]
        targets = cluster.targets()
        writing = zip(targets, parts, strict=True)
        await asyncio.gather(*(_each(target, part, _write) for target, part in writing))
        await asyncio.gather(*(_each(target, values, read) for target in targets))
    finally:
        sampling.cancel()
    return largest


def ratios(failed: list[CacheFailover], held: Memory | None, *, full: bool) -> list[Ratio]:
    """The figures beside their goals; beside a few MiB of a quick run the program itself weighs."""
    lines = []
    for one in failed:
        known = [time_s for time_s in one.times_s if time_s is not None]
        longest_s = max(known, default=None) if len(known) == len(one.times_s) else None
        what = f"seconds after kill -9 of the {one.who} until every value is read and written again"
        lines += [
            judge(
                f"{what}, longest of {len(one.times_s)}",
                longest_s,
                goal=FAILOVER_GOAL_S,
                bound="at_most",
            ),
            judge("the same, median", middle(one.times_s), goal=None, bound="at_most"),
            judge(
                f"acknowledged values lost by kills of the {one.who}",
                float(one.lost),
                goal=0.0,
                bound="at_most",
            ),
        ]
    if held is not None:
        what = f"growth of resident memory over max_bytes, {TIMES_MAX_BYTES} times as many values"
        goal = MEMORY_GOAL if full else None
        lines.append(judge(what, held.growth, goal=goal, bound="at_most"))
    return lines
