"""Nodes whose wall clocks are a minute behind, right and a minute ahead: true time counts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from itertools import permutations
from pathlib import Path

import pytest

from process import calls
from process.calls import Answer, call, call_later
from process.cluster import Cluster, running
from process.running import eventually
from redis_server import RedisServer

SHIFTS = {"n1": -60, "n2": 0, "n3": 60}
PAIRS = list(permutations(SHIFTS, 2))
MS = 1_000  # of each delay, claim, life and lease
LATE_SECONDS = 25.0  # on a slow machine; a clock that counted would be off by a minute

TimedAnswer = tuple[Answer, float]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), options=["--redis", redis.url])
    for name, shift in SHIFTS.items():
        cluster.own_environment[name] = {
            "PYTHONPATH": str(Path(__file__).with_name("shifted_clock")),
            "SHIFTED_CLOCK_SECONDS": str(shift),
        }
    with running(cluster):
        cluster.wait_for_ring(cluster.names)
        yield cluster


def ask(cluster: Cluster, node: str, path: str, **body: object) -> Answer:
    return calls.ask(f"{cluster.url(node)}{path}", **body)


def wait(cluster: Cluster, node: str, path: str, **body: object) -> Future[TimedAnswer]:
    """Ask what waits; the time of its answer comes with it."""
    timed: Future[TimedAnswer] = Future()
    asked = call_later(f"{cluster.url(node)}{path}", {**body, "wait_ms": 30_000})
    asked.add_done_callback(lambda done: timed.set_result((done.result(), time.monotonic())))
    return timed


def pop_later(cluster: Cluster, node: str, queue: str) -> Future[TimedAnswer]:
    return wait(cluster, node, "/queue/pop", queue=queue)


def all_after(
    waits: list[tuple[float, float, Future[TimedAnswer]]], seconds: float
) -> list[Answer]:
    """Return the answers, each of which came `seconds` after what was asked for in a span."""
    answers = []
    for before, after, future in waits:
        answer, at = future.result(60)
        assert answer.status == 200, answer
        assert at - before >= seconds
        assert at - after < seconds + LATE_SECONDS
        answers.append(answer)
    return answers


def spanned(
    do: Callable[[], object], then: Callable[[], Future[TimedAnswer]]
) -> tuple[float, float, Future[TimedAnswer]]:
    before = time.monotonic()
    do()
    return before, time.monotonic(), then()


def test_the_clocks_of_the_nodes_are_wrong(cluster: Cluster) -> None:
    """By what they write into their logs; else the other tests would say nothing."""
    made = (cluster.directory / "secret").stat().st_mtime
    for name, shift in SHIFTS.items():
        first = json.loads(cluster.log_of(name).splitlines()[0])
        logged = datetime.fromisoformat(first["time"]).timestamp()
        assert made - 1 < logged - shift < time.time() + 1


def test_a_delay_ends_by_true_time(cluster: Cluster) -> None:
    waits = []
    for pushing, popping in PAIRS:
        queue = f"delay {pushing} {popping}"
        message = {"body": "x", "delay_ms": MS}
        waits.append(
            spanned(
                lambda at=pushing, queue=queue, message=message: ask(
                    cluster, at, "/queue/push", queue=queue, messages=[message]
                ),
                lambda at=popping, queue=queue: pop_later(cluster, at, queue),
            )
        )
    for answer in all_after(waits, MS / 1_000):
        assert [one["deliveries"] for one in answer["messages"]] == [1]


def test_a_claim_ends_by_true_time_and_an_acked_message_does_not_come_back(
    cluster: Cluster,
) -> None:
    waits = []
    for claiming, popping in PAIRS:
        queue = f"claim {claiming} {popping}"
        ask(cluster, popping, "/queue/push", queue=queue, messages=[{"body": "a"}, {"body": "b"}])
        (acked,) = ask(cluster, claiming, "/queue/pop", queue=queue)["messages"]
        ask(cluster, popping, "/queue/ack", queue=queue, receipts=[acked["receipt"]])
        waits.append(
            spanned(
                lambda at=claiming, queue=queue: ask(
                    cluster, at, "/queue/pop", queue=queue, visibility_ms=MS
                ),
                lambda at=popping, queue=queue: pop_later(cluster, at, queue),
            )
        )
    for answer in all_after(waits, MS / 1_000):
        assert [(one["body"], one["deliveries"]) for one in answer["messages"]] == [("b", 2)]


def test_a_message_expires_by_true_time(cluster: Cluster) -> None:
    def expires(pair: tuple[str, str]) -> None:
        pushing, popping = pair
        queue = f"life-{pushing}-{popping}"
        messages = [{"body": "long", "ttl_ms": 30_000}, {"body": "short", "ttl_ms": MS}]
        before = time.monotonic()
        ask(cluster, pushing, "/queue/push", queue=queue, messages=messages)
        after = time.monotonic()

        def is_over() -> bool:
            peeked = call(f"{cluster.url(popping)}/queue/{queue}/peek?max=10")["messages"]
            return [one["body"] for one in peeked] == ["long"]

        eventually(is_over, what=f"the end of {queue}")
        assert time.monotonic() - before >= MS / 1_000
        assert time.monotonic() - after < MS / 1_000 + LATE_SECONDS

    with ThreadPoolExecutor(len(PAIRS)) as pool:
        list(pool.map(expires, PAIRS))


def test_a_schedule_is_due_by_true_time(cluster: Cluster) -> None:
    waits = []
    for node in SHIFTS:
        url = f"{cluster.url(node)}/queue/due-{node}/schedules/s"
        started = time.monotonic()
        put = call(url, {"cron": "* * * * * *", "body": "x"}, method="PUT")
        assert put.status == 200, put
        waits.append((started, started, pop_later(cluster, node, f"due-{node}")))
    all_after(waits, 0)
    for node in SHIFTS:
        call(f"{cluster.url(node)}/queue/due-{node}/schedules/s", method="DELETE")


def test_a_lease_of_a_lock_ends_by_true_time(cluster: Cluster) -> None:
    waits = []
    for holding, waiting in PAIRS:
        name = f"lease {holding} {waiting}"
        waits.append(
            spanned(
                lambda at=holding, name=name: ask(
                    cluster, at, "/lock/acquire", name=name, owner="first", ttl_ms=MS
                ),
                lambda at=waiting, name=name: wait(
                    cluster, at, "/lock/acquire", name=name, owner="second"
                ),
            )
        )
    all_after(waits, MS / 1_000)


def test_a_lease_outlives_its_leader_by_true_time(cluster: Cluster) -> None:
    """The leader that counted it dies; the next one's clock is a minute or two off from that.

    The last test here: two nodes are left.
    """
    leader = cluster.wait_for_leader()
    others = [name for name in cluster.names if name != leader]
    waits = []
    for holding, waiting in permutations(others):
        name = f"outlives {holding}"
        waits.append(
            spanned(
                lambda at=holding, name=name: ask(
                    cluster, at, "/lock/acquire", name=name, owner="first", ttl_ms=3 * MS
                ),
                lambda at=waiting, name=name: wait(
                    cluster, at, "/lock/acquire", name=name, owner="second"
                ),
            )
        )
    cluster.kill(leader)
    all_after(waits, 3 * MS / 1_000)
