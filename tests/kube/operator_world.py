"""The operator as a process, with the rights of its chart, against doubles with real nodes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from kube.api_double import ApiDouble
from kube.kubelet_double import KubeletDouble
from kube.rights import rights_of
from kubernetes_charts import render, template_of
from process.running import BASE_PORTS, free_base_port
from redis_server import is_free

WITHIN_SECONDS = 180.0
NODES = {"app.kubernetes.io/component": "node"}

# The user of its image has a number and no name.
NAMELESS = """
import getpass

def getuser():
    raise KeyError("getpwuid(): uid not found: 65532")

getpass.getuser = getuser
"""


class World:
    """A resource `demo`, what runs it, and operators that may be killed."""

    def __init__(
        self, api: ApiDouble, kubelet: KubeletDouble, directory: Path, chart: list[dict[str, Any]]
    ) -> None:
        self.api, self.kubelet, self.directory = api, kubelet, directory
        self.operators: list[subprocess.Popen[bytes]] = []
        self.operator_port = 0  # of the one that was started last
        base_port = free_base_port(1)  # of this process, with the next hundreds
        self._ports = itertools.cycle(range(base_port + 1, base_port + BASE_PORTS.step))
        self._environment = environment_of(chart)
        config = self.directory / "kubeconfig"
        config.write_text(self.api.kubeconfig())
        (self.directory / "sitecustomize.py").write_text(NAMELESS)

    # --- The operator ---------------------------------------------------------------------------

    def start_operator(
        self, pod: str = "operator-0", program: str = "distsync_operator", **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start an operator as its Deployment does; another program runs it in another way."""
        here = Path(__file__).parent.parent
        self.operator_port = next(port for port in self._ports if is_free(port))
        with (self.directory / "operator.log").open("ab") as log:
            operator = subprocess.Popen(
                [sys.executable, "-m", program],
                env={
                    **os.environ,
                    **self._environment,
                    "PYTHONPATH": f"{self.directory}:{here}",
                    "KUBECONFIG": str(self.directory / "kubeconfig"),
                    "DISTSYNC_OPERATOR_POD": pod,
                    "DISTSYNC_OPERATOR_PORT": str(self.operator_port),
                    **environment,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.operators.append(operator)
        return operator

    def stop_operators(self) -> list[int]:
        """End all as Kubernetes does; return their exit codes."""
        for operator in self.operators:
            operator.send_signal(signal.SIGTERM)
        return [operator.wait(timeout=60) for operator in self.operators]

    @contextlib.asynccontextmanager
    async def mortal_operator(self, dies_of: str = "") -> AsyncIterator[Path]:
        """Have an operator that dies before, amid and after each thing that it does, once each, and
        is started again. It dies only of what has `dies_of` in it. Yields the file of deaths."""
        deaths = self.directory / "deaths"
        deaths.touch()

        async def keep_alive() -> None:
            while True:
                operator = self.start_operator(
                    program="kube.mortal_operator",
                    DISTSYNC_TEST_DEATHS=str(deaths),
                    DISTSYNC_TEST_DIES_OF=dies_of,
                )
                while operator.poll() is None:
                    await asyncio.sleep(0.05)
                self.operators.remove(operator)

        task = asyncio.create_task(keep_alive())
        try:
            yield deaths
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def close(self) -> None:
        """Leave no operator behind."""
        for operator in self.operators:
            operator.kill()
            operator.wait()

    # --- The resource ---------------------------------------------------------------------------

    def create(self, name: str = "demo", **spec: Any) -> None:
        """Create a resource."""
        metadata = {"name": name, "namespace": "apps"}
        self.api.create("DistSyncCluster", {"metadata": metadata, "spec": spec})

    def change(self, **spec: Any) -> None:
        """Change what is wanted."""
        body = self.resource
        self.api.update("DistSyncCluster", {**body, "spec": {**body["spec"], **spec}})

    def annotate(self, key: str, value: str) -> None:
        """Annotate the resource with distsync.dev/<key>."""
        body = self.resource
        known = body["metadata"].get("annotations") or {}
        metadata = {**body["metadata"], "annotations": {**known, f"distsync.dev/{key}": value}}
        self.api.update("DistSyncCluster", {**body, "metadata": metadata})

    @property
    def resource(self) -> dict[str, Any]:
        """The resource as it is now."""
        body = self.api.get("DistSyncCluster", "demo")
        assert body is not None
        return body

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations."""
        return dict(self.resource["metadata"].get("annotations") or {})

    @property
    def status(self) -> dict[str, Any]:
        """Its status."""
        return self.resource.get("status") or {}

    def condition(self, kind: str) -> dict[str, Any]:
        """A condition of its status."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def ids(self) -> dict[str, str]:
        """The identity of each member that the status lists."""
        return {member["name"]: member["id"] for member in self.status.get("members", [])}

    def is_ready(self) -> bool:
        """Whether the status speaks of this generation and says that all is as wanted."""
        same = self.status.get("observedGeneration") == self.resource["metadata"]["generation"]
        return same and self.condition("Ready").get("status") == "True"

    def ready_with(self, nodes: int) -> bool:
        """Ready, with that many members."""
        return self.is_ready() and list(self.ids()) == [f"demo-{o}" for o in range(nodes)]

    # --- What there is of it --------------------------------------------------------------------

    def pods(self) -> dict[str, str]:
        """The uid of the pod of each node."""
        return {
            pod["metadata"]["name"]: pod["metadata"]["uid"]
            for pod in self.api.list("Pod", labels=NODES)
        }

    def claims(self) -> dict[str, dict[str, Any]]:
        """The volume claims, by name."""
        found = self.api.list("PersistentVolumeClaim")
        return {claim["metadata"]["name"]: claim for claim in found}

    def url(self) -> str:
        """Where clients reach the nodes, as the Service would lead them."""
        pods = self.api.list("Pod", labels=NODES)
        return ",".join(f"http://{pod['status']['podIP']}:8080" for pod in pods)

    async def eventually(
        self, probe: Callable[[], object], what: str, within_seconds: float = WITHIN_SECONDS
    ) -> None:
        """Wait until something is so."""
        deadline = time.monotonic() + within_seconds
        while not probe():
            if time.monotonic() > deadline:
                log = (self.directory / "operator.log").read_text()[-6_000:]
                pytest.fail(f"{what} did not come true\n{self.status}\n{log}")
            await asyncio.sleep(0.05)


def environment_of(chart: list[dict[str, Any]]) -> dict[str, str]:
    """Return what the Deployment of a rendered chart gives its container."""
    (deployment,) = (one for one in chart if one["kind"] == "Deployment")
    (container,) = template_of(chart)["spec"]["containers"]
    given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    return {**given, "DISTSYNC_OPERATOR_NAMESPACE": deployment["metadata"]["namespace"]}


@contextlib.asynccontextmanager
async def running_world(
    directory: Path,
    values: dict[str, Any] | None = None,
    kubelet: type[KubeletDouble] = KubeletDouble,
) -> AsyncIterator[World]:
    """Run the doubles for the chart with these values."""
    images = {
        "nodeImage": {"repository": "node", "tag": "1"},
        "redisImage": "redis:7",
        "crds": {"install": False},
    }
    chart = render("distsync", {**images, **(values or {})})
    async with (
        ApiDouble(rights_of(chart)) as api,
        kubelet(api, directory) as machine,
    ):
        world = World(api, machine, directory, chart)
        try:
            yield world
        finally:
            world.close()
