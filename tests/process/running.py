"""`distsync up` as a real process, for tests: started, read line by line, and ended for certain."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import queue
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch
from urllib.parse import quote

from distsync.command import main
from process.calls import ask, get
from redis_server import is_free

DEADLINE_SECONDS = 60.0
COMMAND = (sys.executable, "-m", "distsync.command")

T = TypeVar("T")


def eventually(
    probe: Callable[[], T],
    *,
    within_seconds: float = DEADLINE_SECONDS,
    every_seconds: float = 0.05,
    what: str = "",
) -> T:
    """Return the first true value of `probe`; what it raises counts as false."""
    deadline = time.monotonic() + within_seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if value := probe():
                return value
            last = value
        except Exception as error:
            last = error
        time.sleep(every_seconds)
    raise AssertionError(f"{what or probe} did not come true in {within_seconds} s: {last!r}")


# Below the range from which the kernel takes the ports of outgoing connections.
BASE_PORTS = range(20_000, 32_000, 200)
_ours: dict[int, socket.socket] = {}  # base ports, each with the name that keeps others off it
_places = itertools.cycle(range(151, 200))  # above those of the nodes at a base port


def free_base_port(nodes: int) -> int:
    """Find a base port whose client, proxy and peer ports are all free.

    Tests run in several processes at a time, and between this answer and the moment at which nodes
    listen there is their start. So a base port belongs to the first process that asks for it.
    """
    for base_port in (*_ours, *BASE_PORTS):
        ports = [base_port + i + offset for i in range(1, nodes + 1) for offset in (0, 50, 100)]
        if _is_ours(base_port) and all(is_free(port) for port in ports):
            return base_port
    raise AssertionError("no free ports")


def reserved_port() -> int:
    """Find a free port for a server that is no node.

    No other process is given it, nor is it given again before many others were.
    """
    base_port = free_base_port(1)
    return next(base_port + place for place in _places if is_free(base_port + place))


def _is_ours(base_port: int) -> bool:
    if base_port in _ours:
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0distsync tests {base_port}")  # abstract: it goes with this process
    except OSError:
        name.close()
        return False
    _ours[base_port] = name
    return True


def acquire(url: str, name: str, owner: str = "somebody", **more: Any) -> int:
    """Take a lock for an hour and return its token."""
    body = {"name": name, "owner": owner, "ttl_ms": 3_600_000, **more}
    token: int = ask(f"{url}/lock/acquire", **body)["token"]
    return token


def lock_state(url: str, name: str) -> Any:
    """Who holds a lock and who waits."""
    return get(f"{url}/lock/{quote(name, safe='')}")


def state_of(pid: int) -> str:
    """What `ps` shows of a process: T when it is stopped, X when it is not there."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "X"
    return status.rpartition(")")[2].split()[0]


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has waited for does not."""
    return state_of(pid) not in ("Z", "X")


def read_until(screen: int, text: str) -> str:
    """Return what comes from a terminal until it has shown a text."""
    seen = ""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([screen], [], [], 0.1)[0]:
            seen += os.read(screen, 4096).decode(errors="replace")
    return seen


def distsync(
    *arguments: str, url: str | None = None, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    environment = {**os.environ, **options.pop("env", {})}
    if url is not None:
        environment["DISTSYNC_URL"] = url
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        **options,
    )


def distsync_here(
    *arguments: str,
    url: str | None = None,
    given: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in this process, which spares the start of another.

    It finds `given` on its standard input, and of the variables that are meant for it only those
    in `env`.
    """
    streams = [io.TextIOWrapper(io.BytesIO(data), encoding="utf-8") for data in (given, b"", b"")]
    stdin, stdout, stderr = streams
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISTSYNC_")}
    with (
        patch.dict(os.environ, kept | dict(env or {}), clear=True),
        patch.multiple(sys, argv=["distsync", *arguments], stdin=stdin),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        if url is not None:
            os.environ["DISTSYNC_URL"] = url
        try:
            main()
        except SystemExit as exited:
            code = exited.code
    out, err = (_written(stream) for stream in (stdout, stderr))
    return subprocess.CompletedProcess(arguments, int(code or 0), out, err)


def completions(*words: str, url: str) -> list[str]:
    """What bash is offered for the last word."""
    ended = distsync_here(
        url=url,
        env={
            "_DISTSYNC_COMPLETE": "bash_complete",
            "COMP_WORDS": shlex.join(("distsync", *words)),
            "COMP_CWORD": str(len(words)),
        },
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return [line.partition(",")[2] for line in ended.stdout.splitlines() if line]


def _written(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


class Up:
    """A running `distsync up --output json`."""

    def __init__(
        self,
        data_dir: Path,
        *,
        nodes: int,
        base_port: int,
        fresh: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir
        self.base_port = base_port
        self.names = [f"node-{i}" for i in range(1, nodes + 1)]
        self.pids: dict[str, int] = {}
        self.stderr_file = data_dir.with_name(data_dir.name + ".stderr")
        with self.stderr_file.open("w") as stderr:
            self.process = subprocess.Popen(
                [
                    *COMMAND,
                    "up",
                    f"--nodes={nodes}",
                    f"--base-port={base_port}",
                    f"--data-dir={data_dir}",
                    "--output=json",
                    *(["--fresh"] if fresh else []),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            event = json.loads(line)
            if event["event"] == "ready":
                self.pids |= {node["name"]: node["pid"] for node in event["nodes"]}
            elif event["event"] == "started":
                self.pids[event["node"]] = event["pid"]
            self._events.put(event)
        self._events.put({"event": "end of output"})

    def next_event(self, kind: str) -> dict[str, Any]:
        """Return the next event of a kind, dropping others."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while True:
            try:
                event = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {kind!r} event: {self.last_words()}") from None
            if event["event"] == kind:
                return event
            if event["event"] == "end of output":
                raise AssertionError(f"up ended: {self.last_words()}")

    def last_words(self) -> str:
        """What up and its nodes said last."""
        logs = (self.data_dir / f"{name}.log" for name in self.names)
        lines = [log.read_text().splitlines()[-1:] for log in logs if log.exists()]
        return f"{self.stderr_file.read_text()} {lines}"

    @property
    def urls(self) -> list[str]:
        """The client URLs."""
        return [f"http://127.0.0.1:{self.base_port + i}" for i, _ in enumerate(self.names, start=1)]

    @property
    def url(self) -> str:
        """The client URLs as the command takes them."""
        return ",".join(self.urls)

    @property
    def secret_file(self) -> Path:
        """The administrators' secret."""
        return self.data_dir / "secret"

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=DEADLINE_SECONDS)

    def close(self) -> None:
        """Leave nothing behind, whatever the test did."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pid in self.pids.values():
            eventually(lambda pid=pid: not is_running(pid), what=f"end of {pid}")


@contextlib.contextmanager
def running_cluster(data_dir: Path, *, nodes: int = 3) -> Iterator[Up]:
    """A cluster that is ready."""
    up = Up(data_dir, nodes=nodes, base_port=free_base_port(nodes))
    try:
        up.next_event("ready")
        yield up
    finally:
        up.close()
