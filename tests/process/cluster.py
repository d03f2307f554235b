"""Real nodes on loopback with a proxy in front of each peer port, to be killed, paused, cut off."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from process.calls import get
from process.proxy import LinkProxies
from process.running import COMMAND, eventually, free_base_port

SECRET = "a secret of tests"
PROXY_OFFSET = 50


class Cluster:
    """Nodes `n1`..`nN` from a static list; node i listens on base + i, peers reach it by proxy."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        *,
        founders: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.founders = founders or nodes  # who creates the cluster; the others join it
        self.options = options  # of every node, beside those that make it one of the cluster
        self.own_options: dict[str, list[str]] = {}  # of single nodes
        self.own_environment: dict[str, dict[str, str]] = {}
        self.names = [f"n{i}" for i in range(1, nodes + 1)]
        self.base_port = free_base_port(nodes)
        self.proxies = LinkProxies()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (directory / "secret").write_text(SECRET)
        for name in self.names:
            port = self.port(name)
            self.proxies.listen(name, port + PROXY_OFFSET, port + 100)

    def port(self, name: str) -> int:
        """Client port."""
        return self.base_port + int(name[1:])

    def url(self, name: str) -> str:
        """Client URL."""
        return f"http://127.0.0.1:{self.port(name)}"

    @property
    def urls(self) -> list[str]:
        """Client URLs of all nodes."""
        return [self.url(name) for name in self.names]

    def data_dir(self, name: str) -> Path:
        """Where a node keeps its data."""
        return self.directory / name

    def log_of(self, name: str) -> str:
        """What a node has logged."""
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def start(self, *names: str) -> None:
        """Start nodes (all of them without a name)."""
        for name in names or self.names:
            listed = list(dict.fromkeys([*self.names[: self.founders], name]))
            members = ",".join(
                f"{one}=http://127.0.0.1:{self.port(one) + PROXY_OFFSET}" for one in listed
            )
            with (self.directory / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [
                        *COMMAND,
                        "node",
                        f"--name={name}",
                        f"--data-dir={self.data_dir(name)}",
                        f"--port={self.port(name)}",
                        f"--members={members}",
                        f"--secret-file={self.directory / 'secret'}",
                        *self.options,
                        *self.own_options.get(name, ()),
                    ],
                    env={**os.environ, **self.own_environment.get(name, {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal; SIGKILL is waited for."""
        self.processes[name].send_signal(number)
        if number is signal.SIGKILL:
            self.processes[name].wait()

    def kill(self, name: str) -> None:
        """kill -9."""
        self.signal(name, signal.SIGKILL)

    def status(self, name: str) -> dict[str, Any]:
        """GET /cluster/status of a node."""
        with urllib.request.urlopen(f"{self.url(name)}/cluster/status", timeout=2) as response:
            return dict(json.load(response))

    def leader(self, among: list[str] | None = None) -> str | None:
        """The node that leads as seen by itself, among those that answer."""
        leaders = []
        for name in among or self.names:
            with contextlib.suppress(OSError, urllib.error.URLError):
                status = self.status(name)
                if status["role"] == "leader":
                    leaders.append((status["term"], name))
        return max(leaders)[1] if leaders else None

    def wait_for_leader(self, among: list[str] | None = None) -> str:
        """Wait until one of the nodes leads."""
        return eventually(lambda: self.leader(among), what=f"a leader among {among or 'all'}")

    def wait_ready(self) -> None:
        """Wait until every node says it is ready."""
        for name in self.names:
            eventually(lambda name=name: self.status(name)["ready"], what=f"{name} ready")

    def ring(self, name: str, queue: str = "") -> Any:
        """GET /cluster/ring of a node."""
        query = f"?key={quote(queue, safe='')}" if queue else ""
        return get(f"{self.url(name)}/cluster/ring{query}")

    def queue_of(self, owner: str, but: Sequence[str] = ()) -> str:
        """A queue that this node owns by the ring, other than some."""
        names = (f"q{i}" for i in range(10_000) if f"q{i}" not in but)
        return next(one for one in names if self.ring(self.names[0], one)["owner"] == owner)

    def wait_for_ring(self, names: Sequence[str]) -> None:
        """Wait until these nodes are the ring on each of them."""

        def is_there() -> bool:
            rings = [self.ring(name) for name in names]
            return all({one["name"] for one in ring["servers"]} == set(names) for ring in rings)

        eventually(is_there, what=f"a ring of {names}")

    def wait_same_index(self) -> None:
        """Wait until all nodes have applied the same log."""

        def same() -> bool:
            return len({self.status(name)["applied_index"] for name in self.names}) == 1

        eventually(same, what="the same applied index everywhere")

    def close(self) -> None:
        """Leave nothing behind."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()
        self.proxies.close()


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    """Start all its nodes, until they are ready and one leads; leave nothing behind."""
    try:
        cluster.start()
        cluster.wait_ready()
        cluster.wait_for_leader()
        yield cluster
    except AssertionError:
        for name in cluster.names:
            print(f"--- {name}\n{cluster.log_of(name)[-3_000:]}")
        raise
    finally:
        cluster.close()


@contextlib.contextmanager
def ready_cluster(
    directory: Path, nodes: int = 3, *, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """A cluster that has a leader."""
    with running(Cluster(directory, nodes, options=options)) as cluster:
        yield cluster
