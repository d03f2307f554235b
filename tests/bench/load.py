"""The load of all systems: a closed loop of clients, each taking and releasing a lock, measured.

Runs in a process of its own: `python -m bench.load` reads one LoadSpec (JSON) from standard input,
prints `running` when the measured window begins and one LoadResult (JSON) when it has ended.

What is measured is a *pair*: from handing the acquire to the socket until the answer to the
release is read. Pairs that end inside the window count. A refused or broken pair is an error and
its client goes on with another lock name after `RETRY_DELAY_S`, since the old name may still be
held; in the contended scenario the names are fixed and it just asks again.

In a failover run (`stop_after_grants`) the second line of standard input is the moment of the kill
on CLOCK_MONOTONIC; the run ends when that many grants came after it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

import msgspec
import uvloop

from bench.arithmetic import cpu_share, cpu_us_per_pair, is_void, longest_silence, percentile
from bench.dialects import make_dialect
from bench.machine import process_cpu_s
from bench.wire import Answer, AnswerReader, WireError

RETRY_DELAY_S = 0.01
SWEEP_S = 0.02
MAX_SAMPLES = 5_000_000


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    `shared_names` of 0 gives each client a lock of its own. Clients begin spread over the targets,
    or all at `first_target`; one whose connection breaks goes on to the next target.
    """

    dialect: str
    targets: list[tuple[str, int]]
    clients: int
    run_id: str
    duration_s: float
    warmup_s: float = 1.0
    first_target: int | None = None
    shared_names: int = 0
    request_timeout_s: float = 15.0
    server_pids: list[int] = []
    stop_after_grants: int = 0


class LoadResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one run gave. `silence_s` is only there for a failover run."""

    clients: int
    window_s: float
    pairs: int
    pairs_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]
    warmup_errors: dict[str, int]
    load_cpu_share: float
    void: bool
    server_cpu_s: list[float]
    cpu_us_per_pair: float | None
    silence_s: float | None = None


class Run:
    """The window and what is counted in it."""

    def __init__(self, spec: LoadSpec, loop: asyncio.AbstractEventLoop) -> None:
        self.spec = spec
        self.loop = loop
        self.over = loop.create_future()
        self.measuring = False
        self.latencies_ns: list[int] = []
        self.errors: Counter[str] = Counter()
        self.warmup_errors: Counter[str] = Counter()
        self.grant_times_s: list[float] = []
        self.killed_at_s: float | None = None
        self._grants_at_kill = 0
        self._began_ns = 0
        self._window_s = 0.0
        self._load_cpu_s = 0.0
        self._server_cpu_s: list[float] = []

    def begin(self) -> None:
        """Open the window."""
        self._began_ns = time.monotonic_ns()
        self._load_cpu_s = time.process_time()
        self._server_cpu_s = self._read_servers()
        self.measuring = True
        self.loop.call_later(self.spec.duration_s, self.end)
        sys.stdout.write("running\n")
        sys.stdout.flush()

    def end(self) -> None:
        """Close the window; the first call counts."""
        if self.over.done():
            return
        self.measuring = False
        self._window_s = (time.monotonic_ns() - self._began_ns) / 1e9
        self._load_cpu_s = time.process_time() - self._load_cpu_s
        servers_s = self._read_servers()
        self._server_cpu_s = [
            after - before for before, after in zip(self._server_cpu_s, servers_s, strict=True)
        ]
        self.over.set_result(None)

    def note_error(self, reason: str) -> None:
        """Count a failure where it happened."""
        (self.errors if self.measuring else self.warmup_errors)[reason] += 1

    def note_grant(self) -> None:
        """A lock was granted."""
        self.grant_times_s.append(time.monotonic())
        after_kill = len(self.grant_times_s) - self._grants_at_kill
        if self.killed_at_s is not None and after_kill >= self.spec.stop_after_grants:
            self.end()

    def note_kill(self, at_s: float) -> None:
        """The leader was killed at that moment."""
        self.killed_at_s = at_s
        self._grants_at_kill = len(self.grant_times_s)

    def note_pair(self, took_ns: int) -> None:
        """A pair has ended."""
        if self.measuring and len(self.latencies_ns) < MAX_SAMPLES:
            self.latencies_ns.append(took_ns)

    def result(self) -> LoadResult:
        """The figures of the window."""
        pairs = len(self.latencies_ns)
        share = cpu_share(self._load_cpu_s, self._window_s)
        return LoadResult(
            clients=self.spec.clients,
            window_s=self._window_s,
            pairs=pairs,
            pairs_per_s=pairs / self._window_s,
            p50_ms=percentile(self.latencies_ns, 0.5) / 1e6 if pairs else None,
            p99_ms=percentile(self.latencies_ns, 0.99) / 1e6 if pairs else None,
            errors=dict(self.errors),
            warmup_errors=dict(self.warmup_errors),
            load_cpu_share=share,
            void=is_void(share),
            server_cpu_s=self._server_cpu_s,
            cpu_us_per_pair=cpu_us_per_pair(self._server_cpu_s, pairs),
            silence_s=None if self.killed_at_s is None else self.silence_s(self.killed_at_s),
        )

    def silence_s(self, killed_at_s: float) -> float | None:
        """How long the kill was felt."""
        return longest_silence(self.grant_times_s, killed_at_s)

    def _read_servers(self) -> list[float]:
        return [process_cpu_s(pid) for pid in self.spec.server_pids]


Step = Literal["idle", "prologue", "acquire", "release", "push", "pop", "ack"]


class Client(asyncio.Protocol):
    """One client: one connection, one request outstanding, pair after pair."""

    def __init__(self, run: Run, index: int) -> None:
        spec = run.spec
        self._run = run
        self._index = index
        self._target = index if spec.first_target is None else spec.first_target
        self._dialect = self._make_dialect()
        self._begun = False
        self._names = 0
        self._step: Step = "idle"
        self._reader = AnswerReader()
        self._transport: asyncio.Transport | None = None
        self._pair_began_ns = 0
        self._sent_at_s = 0.0

    def _make_dialect(self) -> Any:
        spec = self._run.spec
        owner = f"{spec.run_id}-{self._index}"
        return make_dialect(spec.dialect, owner, wait=spec.shared_names > 0)

    async def connect(self) -> None:
        """Connect to this client's target, or the next one that accepts."""
        while not self._run.over.done():
            targets = self._run.spec.targets
            host, port = targets[self._target % len(targets)]
            try:
                await self._run.loop.create_connection(lambda: self, host, port)
            except OSError:
                self._run.note_error("connect: refused")
                self._target += 1
                await asyncio.sleep(RETRY_DELAY_S)
            else:
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with the prologue, or go on with pairs."""
        self._transport = transport  # type: ignore[assignment]
        self._reader = AnswerReader()
        if self._run.over.done():
            transport.close()
            return
        first = None if self._begun else self._dialect.prologue()
        if first is None:
            self._begun = True
            self._next_name()
            self._begin_pair()
        else:
            self._send("prologue", first)

    def data_received(self, data: bytes) -> None:
        """Step on when an answer is complete."""
        try:
            answer = self._reader.feed(data)
        except WireError as error:
            self._fail(f"{self._step}: {error}")
            return
        if answer is not None and not self._run.over.done():
            self._on_answer(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Go to the next target."""
        self._transport = None
        if self._run.over.done():
            return
        if self._step != "idle":
            self._run.note_error(f"{self._step}: connection lost")
            self._step = "idle"
        self._target += 1
        self._run.loop.call_later(RETRY_DELAY_S, self._reconnect)

    def sweep(self, now_s: float) -> None:
        """Give up a request that has had its time."""
        overdue = now_s - self._sent_at_s > self._run.spec.request_timeout_s
        if overdue and self._step != "idle" and self._transport is not None:
            self._fail(f"{self._step}: timeout")

    def _on_answer(self, answer: Answer) -> None:
        if self._step == "acquire":
            ticket = self._dialect.granted(answer)
            if ticket is None:
                self._refused(answer)
                return
            if self._run.spec.stop_after_grants:
                self._run.note_grant()
            self._send("release", self._dialect.release(ticket))
        elif self._step == "release":
            if not self._dialect.released(answer):
                self._refused(answer)
                return
            self._run.note_pair(time.monotonic_ns() - self._pair_began_ns)
            self._begin_pair()
        elif self._step == "prologue" and self._dialect.begun(answer):
            self._begun = True
            self._next_name()
            self._begin_pair()
        else:
            self._refused(answer)

    def _begin_pair(self) -> None:
        self._pair_began_ns = time.monotonic_ns()
        self._send("acquire", self._dialect.acquire())

    def _send(self, step: Step, request: bytes) -> None:
        if self._transport is None or self._run.over.done():
            return
        self._step = step
        self._sent_at_s = time.monotonic()
        self._transport.write(request)

    def _refused(self, answer: Answer) -> None:
        self._run.note_error(f"{self._step}: {answer.status} {_code_of(answer)}".rstrip())
        step, self._step = self._step, "idle"
        self._run.loop.call_later(RETRY_DELAY_S, self._try_again, step)

    def _try_again(self, step: Step) -> None:
        if self._transport is None or self._run.over.done():
            return
        if step == "prologue":
            self._send("prologue", self._dialect.prologue() or b"")
            return
        self._next_name()
        self._begin_pair()

    def _fail(self, reason: str) -> None:
        self._run.note_error(reason)
        self._step = "idle"
        if self._transport is not None:
            self._transport.abort()

    def _reconnect(self) -> None:
        if not self._run.over.done():
            _TASKS.add(task := self._run.loop.create_task(self.connect()))
            task.add_done_callback(_TASKS.discard)

    def _next_name(self) -> None:
        spec = self._run.spec
        if spec.shared_names:
            self._dialect.name(f"{spec.run_id}/{self._index % spec.shared_names}")
        else:
            self._dialect.name(f"{spec.run_id}/{self._index}/{self._names}")
            self._names += 1


_TASKS: set[asyncio.Task[None]] = set()


def _code_of(answer: Answer) -> str:
    """What the answer says went wrong, shortened: DistSync's `code`, etcd's `message`."""
    try:
        body = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return ""
    if not isinstance(body, dict):
        return ""
    return str(body.get("code") if isinstance(body.get("code"), str) else body.get("message", ""))


def _listen_for_kill(run: Run) -> None:
    descriptor = sys.stdin.fileno()

    def on_line() -> None:
        line = os.read(descriptor, 64)
        run.loop.remove_reader(descriptor)
        if line:
            run.note_kill(float(line))

    run.loop.add_reader(descriptor, on_line)


def _sweep(run: Run, clients: Sequence[Client]) -> None:
    now_s = time.monotonic()
    for client in clients:
        client.sweep(now_s)
    if not run.over.done():
        run.loop.call_later(SWEEP_S, _sweep, run, clients)


async def measure(spec: LoadSpec) -> LoadResult:
    """Run the load of locks and give its figures."""
    run = Run(spec, asyncio.get_running_loop())
    return await drive(run, [Client(run, index) for index in range(spec.clients)])


async def drive(run: Run, clients: Sequence[Client]) -> LoadResult:
    """Let the clients run through warm-up and window."""
    spec, loop = run.spec, run.loop
    if spec.stop_after_grants:
        _listen_for_kill(run)
    loop.call_later(spec.warmup_s, run.begin)
    _sweep(run, clients)
    await asyncio.gather(*(client.connect() for client in clients))
    await run.over
    return run.result()


def main(measure: Callable[[LoadSpec], Coroutine[Any, Any, LoadResult]] = measure) -> None:
    """Read a LoadSpec, print a LoadResult."""
    spec = msgspec.json.decode(sys.stdin.buffer.readline(), type=LoadSpec)
    # Cycles are none to speak of; a collection in the window would be counted as latency.
    gc.collect()
    gc.disable()
    result = uvloop.run(measure(spec))
    sys.stdout.buffer.write(msgspec.json.encode(result) + b"\n")


if __name__ == "__main__":
    main()
