"""dramatiq's workers on real nodes and a real Redis: what holds on its other brokers holds here."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq import Message, QueueJoinTimeout, Worker
from dramatiq.common import current_millis
from dramatiq.middleware import AsyncIO, GroupCallbacks
from dramatiq.rate_limits.backends import StubBackend as StubRateLimits
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend as StubResults

from distsync import Client, SyncQueue
from distsync.integrations.dramatiq import DistSyncBroker
from process.cluster import Cluster
from process.running import eventually

JOIN_MS = 60_000

_numbers = itertools.count()


@pytest.fixture
def broker(cluster: Cluster) -> Iterator[DistSyncBroker]:
    broker = DistSyncBroker(cluster.urls, namespace=f"app{next(_numbers)}", timeout=30)
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.close()


@pytest.fixture
def queue(cluster: Cluster, broker: DistSyncBroker) -> Iterator[SyncQueue]:
    """The queue `default` as other clients see it."""
    with Client(cluster.urls, timeout=30) as client:
        yield client.queue(f"{broker._prefix}default")


@contextmanager
def worker(broker: DistSyncBroker, threads: int = 4) -> Iterator[Worker]:
    running = Worker(broker, worker_timeout=100, worker_threads=threads)
    running.start()
    try:
        yield running
    finally:
        running.stop()


# --- Actors ---------------------------------------------------------------------------------------


def test_actors_run(broker: DistSyncBroker) -> None:
    database: dict[str, int] = {}

    @dramatiq.actor
    def put(key: str, value: int) -> None:
        database[key] = value

    with worker(broker) as running:
        for number in range(100):
            put.send(f"key-{number}", number)
        broker.join("default", timeout=JOIN_MS)
        running.join()
    assert database == {f"key-{number}": number for number in range(100)}


def test_actors_on_asyncio_run(broker: DistSyncBroker) -> None:
    broker.add_middleware(AsyncIO())
    done: list[int] = []

    @dramatiq.actor
    async def work(number: int) -> None:
        await asyncio.sleep(0.01)
        if number < 3:
            work.send(number + 1)
        done.append(number)

    with worker(broker):
        work.send(1)
        broker.join("default", timeout=JOIN_MS)
    assert sorted(done) == [1, 2, 3]


def test_an_actor_that_fails_is_retried_with_a_back_off(broker: DistSyncBroker) -> None:
    times: list[int] = []

    @dramatiq.actor(min_backoff=500, max_backoff=500)
    def work() -> None:
        times.append(current_millis())
        if len(times) < 4:
            raise RuntimeError(f"failure {len(times)}")

    with worker(broker):
        work.send()
        broker.join("default", timeout=JOIN_MS)
    assert len(times) == 4
    assert all(b - a >= 250 for a, b in itertools.pairwise(times))


def test_retries_that_run_out_end_among_the_dead_letters(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    attempts: list[str] = []
    is_mended = False

    @dramatiq.actor(max_retries=2, min_backoff=10, max_backoff=10)
    def work(name: str) -> None:
        attempts.append(name)
        if not is_mended:
            raise RuntimeError("it fails")

    with worker(broker):
        work.send("a")
        broker.join("default", timeout=JOIN_MS)
        assert attempts == ["a"] * 3
        assert queue.stats().dead == 1
        is_mended = True
        assert queue.redrive() == 1
        broker.join("default", timeout=JOIN_MS)
    assert attempts == ["a"] * 4
    assert queue.stats().dead == 0


def test_messages_of_an_unknown_actor_are_dead_letters(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    broker.declare_queue("default")
    with worker(broker):
        broker.enqueue(Message("default", "unknown", (), {}, {}))
        broker.join("default", timeout=JOIN_MS)
    assert queue.stats().dead == 1


# --- Delays and priorities ------------------------------------------------------------------------


def test_a_delayed_message_waits_in_the_cluster_and_not_in_a_worker(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    ran_at: list[int] = []

    @dramatiq.actor
    def record() -> None:
        ran_at.append(current_millis())

    with worker(broker) as running:
        sent_at = current_millis()
        record.send_with_options(delay=1_500)
        broker.join("default", timeout=JOIN_MS)
        record.send_with_options(delay=3_600_000)  # which no look comes too late for
        stats = queue.stats()
        assert (stats.delayed, stats.in_flight) == (1, 0)
        assert list(running.consumers) == ["default"]
    (ran_at_ms,) = ran_at
    assert ran_at_ms - sent_at >= 1_500
    assert queue.stats().delivered == 1


def test_delays_do_not_wait_for_each_other(broker: DistSyncBroker) -> None:
    results: list[int] = []

    @dramatiq.actor
    def append(number: int) -> None:
        results.append(number)

    with worker(broker, threads=1):  # which runs before the first delay begins
        append.send_with_options(args=(1,), delay=6_000)
        append.send_with_options(args=(2,), delay=3_000)
        append.send(3)
        broker.join("default", timeout=JOIN_MS)
    assert results == [3, 2, 1]


def test_a_lower_priority_runs_first(broker: DistSyncBroker, queue: SyncQueue) -> None:
    order: list[str] = []

    @dramatiq.actor(priority=9)
    def background(name: str) -> None:
        order.append(name)

    @dramatiq.actor(priority=4)
    def usual(name: str) -> None:
        order.append(name)

    @dramatiq.actor(priority=0)
    def urgent(name: str) -> None:
        order.append(name)

    for number in range(4):
        background.send(f"background {number}")
        usual.send(f"usual {number}")
        urgent.send(f"urgent {number}")
    urgent.send_with_options(args=("delayed",), delay=1)
    eventually(lambda: queue.peek() and queue.stats().delayed == 0)
    with worker(broker, threads=1):
        broker.join("default", timeout=JOIN_MS)
    assert set(order[:5]) == {"delayed", *(f"urgent {number}" for number in range(4))}
    in_order = [name for name in order if name != "delayed"]
    assert in_order == [
        f"{kind} {number}" for kind in ("urgent", "usual", "background") for number in range(4)
    ]


# --- Queues as a whole ----------------------------------------------------------------------------


def test_joining_ends_with_its_timeout(broker: DistSyncBroker) -> None:
    @dramatiq.actor
    def work() -> None:
        time.sleep(2)

    with worker(broker):
        work.send()
        with pytest.raises(QueueJoinTimeout):
            broker.join("default", timeout=300)
        broker.join("default", timeout=JOIN_MS)


def test_flushed_queues_are_empty(broker: DistSyncBroker, queue: SyncQueue) -> None:
    @dramatiq.actor
    def work() -> None: ...

    @dramatiq.actor(queue_name="other")
    def other() -> None: ...

    work.send()
    work.send_with_options(delay=60_000)
    other.send()
    claimed = queue.pop()
    claimed[0].nack(dead=True)
    broker.flush("default")
    stats = queue.stats()
    assert (stats.ready, stats.delayed, stats.dead) == (0, 0, 0)
    broker.join("default", timeout=0)
    with pytest.raises(QueueJoinTimeout):
        broker.join("other", timeout=0)
    broker.flush_all()
    broker.join("other", timeout=0)


# --- Results, pipelines, groups -------------------------------------------------------------------


def test_results_pipelines_and_groups(broker: DistSyncBroker) -> None:
    broker.add_middleware(Results(backend=StubResults()))
    broker.add_middleware(GroupCallbacks(StubRateLimits()))
    called_back: list[bool] = []

    @dramatiq.actor(store_results=True)
    def add(x: int, y: int) -> int:
        return x + y

    @dramatiq.actor(store_results=True, max_retries=0)
    def fail() -> None:
        raise RuntimeError("it fails")

    @dramatiq.actor
    def completed() -> None:
        called_back.append(True)

    with worker(broker):
        assert add.send(1, 2).get_result(block=True, timeout=JOIN_MS) == 3
        with pytest.raises(dramatiq.results.ResultFailure, match="it fails"):
            fail.send().get_result(block=True, timeout=JOIN_MS)
        pipe = add.message(1, 2) | add.message(3) | add.message_with_options(args=(4,), delay=200)
        for _ in range(2):  # the same messages again are another run
            assert pipe.run().get_result(block=True, timeout=JOIN_MS) == 10
        group = dramatiq.group(add.message(number, number) for number in range(10))
        group.add_completion_callback(completed.message())
        group.run()
        assert list(group.get_results(block=True, timeout=JOIN_MS)) == list(range(0, 20, 2))
        eventually(lambda: called_back)
        broker.join("default", timeout=JOIN_MS)
    assert called_back == [True]


# --- Workers that pause, stop and die -------------------------------------------------------------


def test_a_paused_worker_begins_nothing_and_goes_on_afterwards(
    broker: DistSyncBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq.worker.CONSUMER_RESTART_DELAY_SECS", 0.1)
    done: Counter[int] = Counter()

    @dramatiq.actor
    def work(number: int) -> None:
        done[number] += 1

    with worker(broker, threads=2) as running:
        running.pause()
        for number in range(20):
            work.send(number)
        with pytest.raises(QueueJoinTimeout):
            broker.join("default", timeout=1_000)
        assert not done
        running.resume()
        broker.join("default", timeout=JOIN_MS)
    assert done == dict.fromkeys(range(20), 1)


def test_a_worker_that_stops_gives_back_what_it_had_not_begun(
    broker: DistSyncBroker, queue: SyncQueue
) -> None:
    done: Counter[int] = Counter()
    is_free = False

    @dramatiq.actor
    def work(number: int) -> None:
        """Work until the worker is told to stop, at first."""
        thread: Any = threading.current_thread()
        while thread.running and not is_free:
            time.sleep(0.01)
        done[number] += 1

    for number in range(6):
        work.send(number)
    with worker(broker, threads=2):
        eventually(lambda: queue.stats().in_flight == 4)
    stats = queue.stats()
    assert stats.in_flight == 0
    assert stats.ready == 6 - len(done) > 0
    assert {message.deliveries for message in queue.peek(6)} == {0}
    is_free = True
    with worker(broker, threads=2):
        broker.join("default", timeout=JOIN_MS)
    assert done == dict.fromkeys(range(6), 1)


def test_a_message_at_work_or_in_a_worker_is_kept_beyond_its_visibility(
    cluster: Cluster, queue: SyncQueue, broker: DistSyncBroker
) -> None:
    short = DistSyncBroker(cluster.urls, namespace=broker._prefix[:-1], visibility=6)
    done: Counter[int] = Counter()

    @dramatiq.actor(broker=short)
    def work(number: int) -> None:
        time.sleep(7)
        done[number] += 1

    work.send(1)
    work.send(2)
    with worker(short, threads=1), worker(short, threads=1):
        short.join("default", timeout=JOIN_MS)
    short.close()
    assert done == {1: 1, 2: 1}
    assert queue.stats().timed_out == 0


def test_workers_ride_out_the_death_of_all_nodes(broker: DistSyncBroker, cluster: Cluster) -> None:
    done: Counter[int] = Counter()

    @dramatiq.actor
    def work(number: int) -> None:
        time.sleep(0.02)
        done[number] += 1

    for number in range(100):
        work.send(number)
    with worker(broker, threads=2):
        eventually(lambda: len(done) > 20)
        for name in cluster.names:
            cluster.kill(name)
        time.sleep(1)
        cluster.start()
        cluster.wait_ready()
        broker.join("default", timeout=JOIN_MS)
    assert set(done) == set(range(100))


APPLICATION = """
    import os, time
    import dramatiq
    from distsync.integrations.dramatiq import DistSyncBroker

    broker = DistSyncBroker(os.environ["URLS"], namespace=os.environ["NAMESPACE"], visibility=4)
    dramatiq.set_broker(broker)

    def note(*words):
        with open(os.environ["NOTES"], "a") as notes:
            print(*words, file=notes)

    @dramatiq.actor
    def work(number, seconds):
        note("begun", number)
        time.sleep(seconds)
        note("ended", number)
"""


class CommandedWorker:
    """The command `dramatiq`, with all its processes."""

    def __init__(self, directory: Path, cluster: Cluster, broker: DistSyncBroker) -> None:
        self.notes = directory / "notes"
        self.notes.touch()
        (directory / "application.py").write_text(textwrap.dedent(APPLICATION))
        self._environment = {
            **os.environ,
            "URLS": ",".join(cluster.urls),
            "NAMESPACE": broker._prefix[:-1],
            "NOTES": str(self.notes),
            "PYTHONPATH": str(directory),
        }
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "dramatiq", "application"]
        options = ["--processes", "1", "--threads", "2", "--worker-shutdown-timeout", "30000"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self, number: signal.Signals) -> None:
        """Send a signal: SIGKILL to all of its processes, another to the command."""
        process, self._process = self._process, None
        if process is not None:
            send: Callable[[int, int], Any] = os.killpg if number == signal.SIGKILL else os.kill
            send(process.pid, number)
            process.wait(60)

    def noted(self, what: str) -> Counter[int]:
        lines = [line.split() for line in self.notes.read_text().splitlines()]
        return Counter(int(number) for word, number in lines if word == what)


@pytest.fixture
def commanded(
    tmp_path: Path, cluster: Cluster, broker: DistSyncBroker
) -> Iterator[CommandedWorker]:
    commanded = CommandedWorker(tmp_path, cluster, broker)
    yield commanded
    commanded.end(signal.SIGKILL)


def send_work(broker: DistSyncBroker, numbers: range, seconds: float) -> None:
    broker.declare_queue("default")
    for number in numbers:
        broker.enqueue(Message("default", "work", (number, seconds), {}, {}))


def test_what_a_killed_worker_had_is_delivered_again_after_the_visibility(
    commanded: CommandedWorker, broker: DistSyncBroker, queue: SyncQueue
) -> None:
    send_work(broker, range(4), 30)
    commanded.start()
    eventually(lambda: len(commanded.noted("begun")) == 2 and queue.stats().in_flight == 4)
    commanded.end(signal.SIGKILL)
    assert queue.stats().in_flight == 4
    again = {message.body: message for message in queue.pop(4, wait=30)}
    while len(again) < 4:
        again |= {message.body: message for message in queue.pop(4, wait=30)}
    assert {message.deliveries for message in again.values()} == {2}
    assert queue.stats().timed_out == 4


def test_a_terminated_worker_ends_what_it_had_begun_and_gives_back_the_rest(
    commanded: CommandedWorker, broker: DistSyncBroker, queue: SyncQueue
) -> None:
    send_work(broker, range(8), 2)
    commanded.start()
    eventually(lambda: len(commanded.noted("begun")) == 2 and queue.stats().in_flight == 4)
    commanded.end(signal.SIGTERM)
    ended = commanded.noted("ended")
    assert commanded.noted("begun") == ended
    stats = queue.stats()
    assert (stats.in_flight, stats.ready, stats.timed_out) == (0, 8 - len(ended), 0)
    assert {message.deliveries for message in queue.peek(8)} == {0}
    commanded.start()
    broker.join("default", timeout=JOIN_MS)
    assert commanded.noted("ended") == dict.fromkeys(range(8), 1)
