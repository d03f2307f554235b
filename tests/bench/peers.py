"""The queue libraries beside DistSync: a worker and a producer of their own on one Redis.

Each is started as its documentation says, with 64 tasks at a time; queue_peers/ has the tasks. This
process holds the load together: it grants a push for each byte it writes to the producer, and the
worker writes the latency of each message it handles to a pipe. So a number of messages are always
outstanding, as in the closed loop of DistSync's clients, and nothing else is between the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from bench.arithmetic import cpu_share, is_void, percentile
from bench.driver import LoadFailedError
from bench.machine import REPOSITORY, process_cpu_s, session_cpu_s, version_of
from bench.systems import start_process, stop_processes

TASKS = "bench.queue_peers"
BULLMQ = ("bullmq@6.7.0", "ioredis@5")
REDIS5 = Path(sys.prefix) / "redis5" / "bin"
BINARIES = Path(sys.executable).parent
NPM_TIMEOUT_S = 180.0
START_TIMEOUT_S = 60.0
QUIET_TIMEOUT_S = 15.0
LATENCY_BYTES = 8
READ_BYTES = 65_536


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A library: its name and version, and the command lines of its two processes."""

    name: str
    version: str
    worker: list[str]
    producer: list[str]
    adds_in_bulk: bool = False
    environment: dict[str, str] = {}


class PeerRound(msgspec.Struct, frozen=True, kw_only=True):
    """What one window gave."""

    messages: int
    window_s: float
    p50_ms: float | None
    p99_ms: float | None
    redis_cpu_s: float
    load_cpu_s: float
    harness_cpu_share: float
    void: bool


def find_peers(scratch: Path, say: Callable[[str], None]) -> list[Peer]:
    """Those that can run here; says which cannot, and why."""
    return [
        *_python_peers(say),
        *_bullmq(scratch, say),
    ]


def _python_peers(say: Callable[[str], None]) -> Iterator[Peer]:
    def python_peer(name: str, version: str, binaries: Path, *worker: str) -> Peer:
        return Peer(
            name=name,
            version=version,
            worker=[str(binaries / worker[0]), *worker[1:]],
            producer=[str(binaries / "python"), "-m", f"{TASKS}.{name}_tasks"],
        )

    for name, package, worker in (
        (
            "dramatiq",
            "dramatiq",
            ("dramatiq", f"{TASKS}.dramatiq_tasks", "--processes", "2", "--threads", "32"),
        ),
        (
            "taskiq",
            "taskiq-redis",
            (
                *("taskiq", "worker", f"{TASKS}.taskiq_tasks:broker"),
                *("--workers", "1", "--max-async-tasks", "64", "--log-level", "WARNING"),
            ),
        ),
    ):
        if (version := version_of(package)) == "missing":
            say(f"SKIPPED {name}: it is not installed (make install-bench)")
        else:
            yield python_peer(name, version, BINARIES, *worker)
    for name, worker in (
        (
            "arq",
            (
                *("arq", f"{TASKS}.arq_tasks.WorkerSettings"),
                *("--custom-log-dict", f"{TASKS}.arq_tasks.QUIET"),
            ),
        ),
        ("saq", ("saq", f"{TASKS}.saq_tasks.settings", "--quiet")),
    ):
        if not (REDIS5 / name).exists():
            say(f"SKIPPED {name}: it is not installed in {REDIS5.parent} (make bench-queues)")
        else:
            yield python_peer(name, _version_in(REDIS5, name), REDIS5, *worker)


def _bullmq(scratch: Path, say: Callable[[str], None]) -> Iterator[Peer]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        say(f"SKIPPED bullmq: there is no {'node' if node is None else 'npm'} on PATH")
        return
    try:
        _npm_install(npm, scratch)
    except (OSError, subprocess.SubprocessError) as error:
        told = getattr(error, "stderr", b"") or b""
        say(f"SKIPPED bullmq: npm install failed: {error} {told.decode()[-500:]}")
        return
    modules = scratch / "node_modules"
    script = str(Path(__file__).parent / "queue_peers" / "bullmq_tasks.cjs")
    yield Peer(
        name="bullmq",
        version=json.loads((modules / "bullmq" / "package.json").read_text())["version"],
        worker=[node, script, "worker"],
        producer=[node, script, "producer"],
        adds_in_bulk=True,
        environment={"NODE_PATH": str(modules), "NODE_ENV": "production"},
    )


def _npm_install(npm: str, scratch: Path) -> None:
    (scratch / "package.json").write_text('{"private": true}\n')
    subprocess.run(
        [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", *BULLMQ],
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=NPM_TIMEOUT_S,
    )


def _version_in(binaries: Path, distribution: str) -> str:
    ask = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    asked = subprocess.run(
        [binaries / "python", "-c", ask, distribution], capture_output=True, text=True, check=True
    )
    return asked.stdout.strip()


class RunningPeer:
    """A worker and a producer that are ready."""

    def __init__(self, peer: Peer, redis_url: str, redis_pid: int, directory: Path) -> None:
        self.peer = peer
        self._redis_pid = redis_pid
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        pipe = directory / "handled"
        os.mkfifo(pipe)
        # Held for writing too, so that it never ends.
        self._handled = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        self._outstanding = 0
        environment = {
            **os.environ,
            **peer.environment,
            "PYTHONPATH": str(REPOSITORY / "tests"),
            "BENCH_REDIS_URL": redis_url,
            "BENCH_HANDLED": str(pipe),
        }
        self._worker = start_process(peer.worker, environment, directory / "worker.log")
        self._producer = start_process(
            peer.producer, environment, directory / "producer.log", stdin=subprocess.PIPE
        )

    def stop(self) -> None:
        """End both, the producer by the end of its input."""
        with contextlib.suppress(BrokenPipeError):
            if self._producer.stdin is not None:
                self._producer.stdin.close()
        stop_processes([self._worker, self._producer])
        os.close(self._handled)

    def await_ready(self) -> None:
        """Have one message handled."""
        self._grant(1, bulk=False)
        self._read(START_TIMEOUT_S)

    def measure(
        self, outstanding: int, warmup_s: float, duration_s: float, *, bulk: int = 1
    ) -> PeerRound:
        """Keep that many messages outstanding; measure for `duration_s` after the warm-up.

        The producer is granted `bulk` messages at once.
        Raises: LoadFailedError when nothing is handled for a time, or a process has ended.
        """
        self._grant(outstanding, bulk=bulk > 1)
        self._go_on(time.monotonic() + warmup_s, bulk)
        began_s, cpu_s, own_s = time.monotonic(), self._cpu_s(), time.process_time()
        latencies_ns = self._go_on(began_s + duration_s, bulk)
        window_s = time.monotonic() - began_s
        share = cpu_share(time.process_time() - own_s, window_s)
        redis_s, load_s = (
            after - before for before, after in zip(cpu_s, self._cpu_s(), strict=True)
        )
        while self._outstanding:
            self._read(QUIET_TIMEOUT_S)
        return PeerRound(
            messages=len(latencies_ns),
            window_s=window_s,
            p50_ms=percentile(latencies_ns, 0.5) / 1e6 if latencies_ns else None,
            p99_ms=percentile(latencies_ns, 0.99) / 1e6 if latencies_ns else None,
            redis_cpu_s=redis_s,
            load_cpu_s=load_s,
            harness_cpu_share=share,
            void=is_void(share),
        )

    def _go_on(self, until_s: float, bulk: int) -> list[int]:
        """Grant a push for each message that was handled; give their latencies."""
        latencies_ns: list[int] = []
        owed = 0
        while (left_s := until_s - time.monotonic()) > 0:
            got = self._read(QUIET_TIMEOUT_S, give_up_after_s=left_s)
            latencies_ns += got
            owed += len(got)
            if owed >= bulk:
                self._grant(owed, bulk=bulk > 1)
                owed = 0
        return latencies_ns

    def _grant(self, count: int, *, bulk: bool) -> None:
        if self._producer.stdin is None:
            raise LoadFailedError("no pipe to the producer")
        try:
            self._producer.stdin.write((b"b" if bulk else b"s") * count)
            self._producer.stdin.flush()
        except BrokenPipeError:
            raise self._failed("the producer has ended") from None
        self._outstanding += count

    def _read(self, timeout_s: float, *, give_up_after_s: float | None = None) -> list[int]:
        """Latencies of the messages that were handled since, at least one.

        None of them when `give_up_after_s` comes before the timeout, which is a failure.
        """
        wait_s = timeout_s if give_up_after_s is None else min(timeout_s, give_up_after_s)
        if not select.select([self._handled], [], [], wait_s)[0]:
            if wait_s < timeout_s:
                return []
            raise self._failed(f"no message was handled for {timeout_s:.0f} s")
        # Whole latencies only: each is written at once, and a pipe keeps such a write together.
        data = os.read(self._handled, READ_BYTES)
        self._outstanding -= len(data) // LATENCY_BYTES
        return [
            int.from_bytes(data[at : at + LATENCY_BYTES], "little", signed=True)
            for at in range(0, len(data), LATENCY_BYTES)
        ]

    def _cpu_s(self) -> tuple[float, float]:
        load_s = session_cpu_s(self._worker.pid) + session_cpu_s(self._producer.pid)
        return process_cpu_s(self._redis_pid), load_s

    def _failed(self, what: str) -> LoadFailedError:
        logs = [
            f"{name}: {(self._directory / name).read_text(errors='replace')[-1_500:]}"
            for name in ("worker.log", "producer.log")
        ]
        return LoadFailedError("\n".join((f"{self.peer.name}: {what}", *logs)))


@contextlib.contextmanager
def running_peer(
    peer: Peer, redis_url: str, redis_pid: int, directory: Path
) -> Iterator[RunningPeer]:
    """The peer, started and ready, and ended whatever happens."""
    started = RunningPeer(peer, redis_url, redis_pid, directory)
    try:
        started.await_ready()
        yield started
    finally:
        started.stop()
