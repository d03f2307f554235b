"""The closed loop around a worker and a producer, with a library of a few lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import peers
from bench.driver import LoadFailedError
from bench.peers import Peer, PeerRound, RunningPeer, find_peers, running_peer

# Its queue is a pipe: as many stamps as came bytes, handled at once.
PRODUCER = """
import os, sys, time
out = os.open(os.environ["BENCH_QUEUE"], os.O_WRONLY)
most = 0
while granted := os.read(0, 65536):
    most = max(most, len(granted))
    with open(os.environ["BENCH_QUEUE"] + ".most", "w") as file:
        file.write(f"{most}{granted[:1].decode()}")
    os.write(out, time.monotonic_ns().to_bytes(8, "little") * len(granted))
"""
WORKER = """
import os, time
source = os.open(os.environ["BENCH_QUEUE"], os.O_RDONLY)
handled = os.open(os.environ["BENCH_HANDLED"], os.O_WRONLY)
while stamp := os.read(source, 8):
    took = time.monotonic_ns() - int.from_bytes(stamp, "little")
    os.write(handled, took.to_bytes(8, "little", signed=True))
"""


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    path = tmp_path / "queue"
    os.mkfifo(path)
    return path


def peer_of(queue: Path, worker: str = WORKER, producer: str = PRODUCER) -> Peer:
    return Peer(
        name="small",
        version="1",
        worker=[sys.executable, "-c", worker],
        producer=[sys.executable, "-c", producer],
        environment={"BENCH_QUEUE": str(queue)},
    )


@pytest.fixture
def started(queue: Path, tmp_path: Path) -> Iterator[RunningPeer]:
    with running_peer(peer_of(queue), "redis://", os.getpid(), tmp_path / "peer") as running:
        yield running


def check(found: PeerRound) -> None:
    assert found.messages > 0
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.load_cpu_s > 0


def test_as_many_messages_are_outstanding_as_asked_for(started: RunningPeer, queue: Path) -> None:
    check(started.measure(4, 0.05, 0.3))
    most = Path(f"{queue}.most").read_text()
    assert most.endswith("s")
    assert 1 <= int(most[:-1]) <= 4


def test_bulk_is_granted_at_once(started: RunningPeer, queue: Path) -> None:
    check(started.measure(40, 0.05, 0.3, bulk=20))
    most = Path(f"{queue}.most").read_text()
    assert most.endswith("b")
    assert 20 <= int(most[:-1]) <= 40


def test_nothing_is_outstanding_after_a_window(started: RunningPeer) -> None:
    check(started.measure(16, 0.0, 0.2))
    check(started.measure(1, 0.0, 0.2))


def test_a_worker_that_handles_nothing_is_told_with_its_log(
    queue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "START_TIMEOUT_S", 2.0)
    idle = (
        "import os, time; print('no such task', flush=True)\n"
        + WORKER.split("while", maxsplit=1)[0]
    )
    peer = peer_of(queue, worker=idle + "time.sleep(60)")
    with (
        pytest.raises(LoadFailedError, match="no such task"),
        running_peer(peer, "redis://", os.getpid(), tmp_path / "peer"),
    ):
        pass


def test_what_is_not_installed_is_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peers, "REDIS5", tmp_path)
    monkeypatch.setattr(peers, "version_of", lambda _: "missing")
    said: list[str] = []
    assert find_peers(tmp_path, said.append) == []
    assert [line.split(":")[0] for line in said] == [
        "SKIPPED dramatiq",
        "SKIPPED taskiq",
        "SKIPPED arq",
        "SKIPPED saq",
        "SKIPPED bullmq",
    ]
