"""Messages pushed, popped and acked by each system, on a Redis of its own, taking turns.

A round starts a system and its Redis afresh, alone on the machine, runs all its points and ends
both; the order of the systems rotates from round to round, and a point's figures are the medians of
its rounds.

Scenarios:

    singles   one message a request; DistSync: as many clients on one queue, all at its owner, as
              clients are that route; libraries: as many messages outstanding
    workers   the same, each pop acking what the one before it brought: two requests a message
    spread    as singles, the clients spread over the nodes, most of which forward (DistSync)
    polls     the same, the pops being long polls (DistSync)
    batches   100 messages a request, 16 clients (DistSync); push, pop and ack (bare scripts)
    backlog   a thousand messages outstanding; BullMQ adds them 100 at a time (libraries)
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

import httpx
import msgspec
import uvloop

from bench.arithmetic import (
    Ratio,
    batch_goal,
    hold_against,
    is_counted,
    middle,
)
from bench.dialects import BATCH
from bench.driver import run_load, unique_run_id
from bench.load import LoadResult, LoadSpec
from bench.options import Say
from bench.peers import Peer, PeerRound, running_peer
from bench.queue_store import Rate, raw_limit
from bench.rounds import Plan, figure, in_turn, judge_load
from bench.systems import DistSync, running
from redis_server import RedisServer, free_port

CLIENTS = (1, 16, 64)
MOST_CLIENTS = 64
BATCH_CLIENTS = 16
BACKLOG = 1_000
RAW_CLIENTS = 4
SINGLES_GOAL = 1.0
RING_DEADLINE_S = 10.0
BATCHES_GOAL = 1.0  # of what `batch_goal` gives
PYTHON_LIBRARIES = ("dramatiq", "taskiq", "arq", "saq")
LIBRARIES = (*PYTHON_LIBRARIES, "bullmq")
OURS = "distsync"
RAW = "bare scripts"

Scenario = Literal["singles", "workers", "spread", "polls", "batches", "backlog"]
Key: TypeAlias = tuple[str, Scenario, int]


class QueueRound(msgspec.Struct, frozen=True, kw_only=True):
    """What one window gave. CPU is for each message: of the nodes, of Redis, of load and workers.

    `load_cpu_share` is of the process that measures; for a library its producer and worker are not
    in it.
    """

    messages: int
    messages_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    nodes_cpu_us: float
    redis_cpu_us: float
    load_cpu_us: float
    load_cpu_share: float
    void: bool
    errors: dict[str, int] = {}


class QueuePoint(msgspec.Struct, frozen=True, kw_only=True):
    """A system, a scenario and a number of clients, over all rounds."""

    variant: str
    scenario: Scenario
    clients: int
    messages_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    nodes_cpu_us: float | None
    redis_cpu_us: float | None
    load_cpu_us: float | None
    load_cpu_share: float
    errors: int
    rounds_not_counted: int
    rounds: list[QueueRound]


def measure(data_root: Path, plan: Plan, peers: list[Peer], say: Say) -> list[QueuePoint]:
    """All points of all systems."""
    runs: list[tuple[str, Callable[[RedisServer, Path], Iterable[tuple[Key, QueueRound]]]]] = [
        (OURS, lambda server, directory: _ours(server, directory, plan)),
        (RAW, lambda server, _: _raw(server, plan)),
        *((peer.name, _peer_run(peer, plan)) for peer in peers),
    ]
    rounds: defaultdict[Key, list[QueueRound]] = defaultdict(list)
    for number in range(plan.rounds):
        for name, run in in_turn(runs, number):
            directory = data_root / f"round-{number}" / name.replace(" ", "-")
            with RedisServer(directory / "redis", port=free_port()) as server:
                for key, result in run(server, directory):
                    rounds[key].append(result)
                    say(_progress(number, key, result))
    return [summarise(*key, results) for key, results in sorted(rounds.items())]


def summarise(
    variant: str, scenario: Scenario, clients: int, rounds: list[QueueRound]
) -> QueuePoint:
    """Medians over the rounds that count."""
    counted = [
        one
        for one in rounds
        if is_counted(void=one.void, done=one.messages, failed=sum(one.errors.values()))
    ]
    return QueuePoint(
        variant=variant,
        scenario=scenario,
        clients=clients,
        messages_per_s=middle(one.messages_per_s for one in counted),
        p50_ms=middle(one.p50_ms for one in counted),
        p99_ms=middle(one.p99_ms for one in counted),
        nodes_cpu_us=middle(one.nodes_cpu_us for one in counted),
        redis_cpu_us=middle(one.redis_cpu_us for one in counted),
        load_cpu_us=middle(one.load_cpu_us for one in counted),
        load_cpu_share=max(one.load_cpu_share for one in rounds),
        errors=sum(sum(one.errors.values()) for one in rounds),
        rounds_not_counted=len(rounds) - len(counted),
        rounds=rounds,
    )


def ratios(points: list[QueuePoint]) -> list[Ratio]:
    """DistSync beside the others; the goals are those of the product."""

    def rate(variant: str, scenario: Scenario, clients: int) -> float | None:
        return figure(points, "messages_per_s", variant, scenario, clients)

    def best(libraries: Iterable[str]) -> float | None:
        """Of each with as many outstanding as suits it. None while one of them has no figure."""
        rates = []
        for library in libraries:
            known = [rate(library, "singles", MOST_CLIENTS), rate(library, "backlog", BACKLOG)]
            rates.append(max((one for one in known if one is not None), default=None))
        known_rates = [one for one in rates if one is not None]
        return max(known_rates) if len(known_rates) == len(rates) else None

    singles = rate(OURS, "singles", MOST_CLIENTS)
    batches = rate(OURS, "batches", BATCH_CLIENTS)
    raw_singles, raw_batches = rate(RAW, "singles", RAW_CLIENTS), rate(RAW, "batches", RAW_CLIENTS)
    many = f"messages/s, {MOST_CLIENTS} clients"

    def beside(what: str, ours: float | None, theirs: float | None, goal: float | None) -> Ratio:
        return hold_against(what, ours, theirs, goal=goal, bound="at_least")

    return [
        beside(
            f"{many}: over the best Python library", singles, best(PYTHON_LIBRARIES), SINGLES_GOAL
        ),
        beside(
            f"{many}, acks with the next pop: over the best Python library",
            rate(OURS, "workers", MOST_CLIENTS),
            best(PYTHON_LIBRARIES),
            SINGLES_GOAL,
        ),
        beside(
            f"messages/s, batches of {BATCH}: over 5 times the best library or 60 % of bare"
            " scripts, whichever is lower",
            batches,
            batch_goal(best(LIBRARIES), raw_batches),
            BATCHES_GOAL,
        ),
        beside(
            f"{many}, spread over the nodes: over the best Python library",
            rate(OURS, "spread", MOST_CLIENTS),
            best(PYTHON_LIBRARIES),
            None,
        ),
        beside(f"{many}: over BullMQ", singles, best(("bullmq",)), None),
        beside(
            f"{many}, long polls: over the best Python library",
            rate(OURS, "polls", MOST_CLIENTS),
            best(PYTHON_LIBRARIES),
            None,
        ),
        beside(f"messages/s, batches of {BATCH}: over the best", batches, best(LIBRARIES), None),
        beside(f"messages/s, batches of {BATCH}: of bare scripts", batches, raw_batches, None),
        beside(f"{many}: of bare scripts", singles, raw_singles, None),
        judge_load(one.load_cpu_share for one in points if one.variant != RAW),
    ]


def _ours(server: RedisServer, directory: Path, plan: Plan) -> Iterable[tuple[Key, QueueRound]]:
    points: list[tuple[Scenario, int]] = [
        *(("singles", clients) for clients in CLIENTS),
        ("workers", MOST_CLIENTS),
        ("spread", MOST_CLIENTS),
        ("polls", MOST_CLIENTS),
        ("batches", BATCH_CLIENTS),
    ]
    with running(DistSync(directory, redis_url=server.url)) as cluster:
        for scenario, clients in points:
            run_id = unique_run_id(f"{scenario}-{clients}")
            is_spread = scenario == "spread"
            spec = LoadSpec(
                dialect="singles" if is_spread else scenario,
                targets=cluster.targets() if is_spread else [owner(cluster, f"{run_id}/0")],
                clients=clients,
                run_id=run_id,
                duration_s=plan.duration_s,
                warmup_s=plan.warmup_s,
                shared_names=1,
                server_pids=[*cluster.pids(), server.pid],
            )
            result = run_load(spec, module="bench.queue_load")
            yield (OURS, scenario, clients), of_load(result)


def owner(cluster: DistSync, queue: str) -> tuple[str, int]:
    """Where a client that routes goes with this queue, once every node is in the ring."""
    host, port = cluster.targets()[0]
    base = f"http://{host}:{port}"
    deadline_s = time.monotonic() + RING_DEADLINE_S
    while time.monotonic() < deadline_s:
        ring = httpx.get(f"{base}/cluster/ring", params={"key": queue}).json()
        members = httpx.get(f"{base}/cluster/status").json()["members"]
        urls = {one["name"]: httpx.URL(one["client_url"]) for one in members}
        url = urls.get(ring["owner"])
        if len(ring["servers"]) == len(cluster.targets()) and url is not None and url.port:
            return url.host, url.port
        time.sleep(0.02)  # between questions whether every node is in the ring yet
    raise RuntimeError(f"the ring is not complete: {ring}")


def _raw(server: RedisServer, plan: Plan) -> Iterable[tuple[Key, QueueRound]]:
    for scenario, batch in (("singles", 1), ("batches", BATCH)):
        rate = uvloop.run(raw_limit(server, plan.duration_s, batch))
        yield (RAW, scenario, RAW_CLIENTS), of_rate(rate)


def _peer_run(
    peer: Peer, plan: Plan
) -> Callable[[RedisServer, Path], Iterable[tuple[Key, QueueRound]]]:
    def run(server: RedisServer, directory: Path) -> Iterable[tuple[Key, QueueRound]]:
        with running_peer(peer, server.url, server.pid, directory) as started:
            for clients in CLIENTS:
                result = started.measure(clients, plan.warmup_s, plan.duration_s)
                yield (peer.name, "singles", clients), of_peer(result)
            bulk = BATCH if peer.adds_in_bulk else 1
            result = started.measure(BACKLOG, plan.warmup_s, plan.duration_s, bulk=bulk)
            yield (peer.name, "backlog", BACKLOG), of_peer(result)

    return run


def of_load(result: LoadResult) -> QueueRound:
    """A run over HTTP; the last of its servers is Redis."""
    *nodes_s, redis_s = result.server_cpu_s
    messages = max(result.pairs, 1)
    return QueueRound(
        messages=result.pairs,
        messages_per_s=result.pairs_per_s,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        nodes_cpu_us=sum(nodes_s) / messages * 1e6,
        redis_cpu_us=redis_s / messages * 1e6,
        load_cpu_us=result.load_cpu_share * result.window_s / messages * 1e6,
        load_cpu_share=result.load_cpu_share,
        void=result.void,
        errors=result.errors,
    )


def of_peer(result: PeerRound) -> QueueRound:
    """A window of a library, which has no server but Redis."""
    messages = max(result.messages, 1)
    return QueueRound(
        messages=result.messages,
        messages_per_s=result.messages / result.window_s,
        p50_ms=result.p50_ms,
        p99_ms=result.p99_ms,
        nodes_cpu_us=0.0,
        redis_cpu_us=result.redis_cpu_s / messages * 1e6,
        load_cpu_us=result.load_cpu_s / messages * 1e6,
        load_cpu_share=result.harness_cpu_share,
        void=result.void,
    )


def of_rate(rate: Rate) -> QueueRound:
    """Bare scripts. Whoever sends them is the limit or Redis is: neither makes the run void."""
    return QueueRound(
        messages=rate.messages,
        messages_per_s=rate.messages_per_s,
        p50_ms=None,
        p99_ms=None,
        nodes_cpu_us=0.0,
        redis_cpu_us=rate.redis_us,
        load_cpu_us=rate.own_us,
        load_cpu_share=rate.own_us * rate.messages_per_s / 1e6,
        void=False,
    )


def _progress(number: int, key: Key, result: QueueRound) -> str:
    variant, scenario, clients = key
    line = (
        f"round {number + 1}  {variant:<12} {scenario:<8} {clients:>4} clients"
        f"  {result.messages_per_s:>8.0f} messages/s"
    )
    if result.p50_ms is not None and result.p99_ms is not None:
        line += f"  p50 {result.p50_ms:7.2f} ms  p99 {result.p99_ms:7.2f} ms"
    line += (
        f"  CPU µs: nodes {result.nodes_cpu_us:.0f}, Redis {result.redis_cpu_us:.0f},"
        f" load {result.load_cpu_us:.0f}"
    )
    if result.void:
        line += "  VOID: the load client was the limit"
    if result.errors:
        line += f"  errors {result.errors}"
    return line
