"""Keeps the processes of `distsync up`, nodes and Redis, alive, and leaves none behind.

A process that ends is started again, after a pause that doubles while it keeps ending soon. Each is
a session of its own, so Ctrl-C reaches only the supervisor, which then stops the nodes and, after
the last of them, Redis: nothing they write while they end is lost. Each asks the kernel to be
killed with the supervisor, so even kill -9 leaves nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from distsync.command.failures import ExitCode
from distsync.command.local_redis import NAME, LocalRedis

_NODE = (sys.executable, "-m", "distsync.command", "node")
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_LIVED_WELL_SECONDS = 10.0
_STOP_GRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """How one node is started, and where it is reached."""

    name: str
    arguments: tuple[str, ...]
    client_url: str
    peer_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process runs; `node` is its name, `redis` for Redis."""

    node: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A process ended by itself; it is started again after the pause."""

    node: str
    exit_code: int
    pause_seconds: float


def describe_exit(exit_code: int) -> str:
    """Say how a process ended, as `subprocess` counts: negative is a signal."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


class Supervisor:
    """Runs the nodes, and Redis if there is one to run, until told to stop.

    `environment` is that of the nodes.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        *,
        redis: LocalRedis | None,
        environment: Mapping[str, str],
        log_file: Callable[[str], Path],
        on_event: Callable[[Started | Ended], None],
    ) -> None:
        self._specs = specs
        self._redis = redis
        self._environment = environment
        self._log_file = log_file
        self._on_event = on_event
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._nodes_ended = asyncio.Event()
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._settled = False

    @property
    def refused(self) -> asyncio.Future[str]:
        """Done with the name of a node that said at its first start that it cannot run."""
        return self._refused

    def pid(self, name: str) -> int | None:
        """Return the process id of a node or Redis, if it runs."""
        process = self._processes.get(name)
        return process.pid if process is not None else None

    def settle(self) -> None:
        """From now on no refusal is final: a node that cannot start is tried again for ever."""
        self._settled = True

    async def run(self) -> None:
        """Keep all processes running until `stop`; returns when every process has ended."""
        async with asyncio.TaskGroup() as redis:
            if self._redis is not None:
                keeping = self._keep_running(NAME, self._redis.command, None, self._nodes_ended)
                redis.create_task(keeping)
            async with asyncio.TaskGroup() as nodes:
                for spec in self._specs:
                    command = (*_NODE, *spec.arguments, f"--parent-pid={os.getpid()}")
                    nodes.create_task(
                        self._keep_running(spec.name, command, self._environment, self._stopping)
                    )
            self._nodes_ended.set()

    def stop(self) -> None:
        """Ask the nodes to end (SIGTERM); a second call does not ask any more (SIGKILL)."""
        self._signal_all(signal.SIGKILL if self._stopping.is_set() else signal.SIGTERM)
        self._stopping.set()

    def _signal_all(self, number: signal.Signals) -> None:
        for name, process in self._processes.items():
            if name == NAME and not self._nodes_ended.is_set():
                continue
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep_running(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None,
        stopping: asyncio.Event,
    ) -> None:
        loop = asyncio.get_running_loop()
        pause_seconds = _FIRST_PAUSE_SECONDS
        while not stopping.is_set():
            started_at = loop.time()
            try:
                exit_code = await self._run_once(name, command, environment, stopping)
            except OSError as error:  # no memory, no file handles: may pass
                click.echo(f"distsync: cannot start {name}: {error}", err=True)
                exit_code = ExitCode.NOT_EXECUTABLE
            if stopping.is_set():
                return
            if loop.time() - started_at > _LIVED_WELL_SECONDS:
                pause_seconds = _FIRST_PAUSE_SECONDS
            if name != NAME and exit_code == ExitCode.USAGE:
                self._refuse(name)
            self._on_event(Ended(node=name, exit_code=exit_code, pause_seconds=pause_seconds))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), pause_seconds)
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    def _refuse(self, name: str) -> None:
        if not self._settled and not self._refused.done():
            self._refused.set_result(name)

    async def _run_once(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None,
        stopping: asyncio.Event,
    ) -> int:
        with self._log_file(name).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        try:
            self._on_event(Started(node=name, pid=process.pid))
            return await self._wait(process, stopping)
        finally:
            if process.returncode is None:
                process.kill()
            del self._processes[name]

    async def _wait(self, process: asyncio.subprocess.Process, stop: asyncio.Event) -> int:
        ended = asyncio.ensure_future(process.wait())
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                # Also a process that was started in the same moment as it was told to stop.
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait({ended}, timeout=_STOP_GRACE_SECONDS)
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            return await ended
        finally:
            stopping.cancel()
