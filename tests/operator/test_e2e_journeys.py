"""The journeys of `make e2e` as far as the doubles allow: kubectl, real nodes, no containers.

What is installed by Helm or runs in a pod of its own is left out, and so is the load.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from e2e import journeys
from e2e.place import Place
from e2e.tools import Kubectl
from e2e.world import NAME, World, cluster_values
from kube.operator_world import World as Doubles
from kube.operator_world import running_world

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1_800),
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH"),
]

JOURNEYS = (
    journeys.operator_killed,
    journeys.rolling_restart,
    journeys.image_changed,
    journeys.pod_deleted,
    journeys.evicted,
    journeys.volume_wiped,
    journeys.member_replaced,
    journeys.volumes_grown,
    journeys.paused,
    journeys.secret_missing,
    journeys.image_missing,
    journeys.class_missing,
)


class LocalKubectl(Kubectl):
    """kubectl, without what the API double does not have."""

    def __call__(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        if words[0] == "apply":
            words = (*words, "--validate=false")
        if words[0] == "scale":
            replicas = words[2].rpartition("=")[2]
            change = f'{{"spec": {{"replicas": {replicas}}}}}'
            words = ("patch", words[1], "--type=merge", f"--patch={change}")
        cache = Path(self.kubeconfig).parent / "cache"
        return super().__call__(*words, f"--cache-dir={cache}", stdin=stdin, check=check)


def world_of(doubles: Doubles) -> World:
    """What journeys know of the doubles."""
    kubeconfig = doubles.directory / "kubeconfig"
    place = Place(
        kubeconfig=str(kubeconfig),
        node_image="node:1",
        operator_image="operator:1",
        redis_image="redis:7",
        next_node_image="node:2",
    )
    world = World(place, "unused")
    world.kubectl = LocalKubectl(str(kubeconfig), "apps")
    return world


async def test_journeys_lead_where_they_are_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_world(tmp_path) as doubles:
        loop = asyncio.get_running_loop()

        async def restart_operator() -> None:
            doubles.operators.pop().kill()
            doubles.start_operator()

        def kill_operator(_: World) -> None:
            asyncio.run_coroutine_threadsafe(restart_operator(), loop).result()

        def no_load(*_: Any) -> str:
            return "no load"

        for name in ("start_load", "stop_load", "judged"):
            monkeypatch.setattr(journeys, name, no_load)
        monkeypatch.setattr(journeys, "kill_operator", kill_operator)
        default = {"storageclass.kubernetes.io/is-default-class": "true"}
        metadata = {"name": "standard", "annotations": default}
        doubles.api.create("StorageClass", {"metadata": metadata, "allowVolumeExpansion": True})
        doubles.kubelet.broken_images.add("distsync.invalid/none:1")
        doubles.start_operator()
        world = world_of(doubles)
        metadata = {"name": NAME, "namespace": "apps"}
        spec = cluster_values(world.place)["spec"]
        doubles.api.create("DistSyncCluster", {"metadata": metadata, "spec": spec})
        await asyncio.to_thread(world.wait_settled, 3)
        for journey in JOURNEYS:
            print(journey.__doc__)
            for line in await asyncio.to_thread(list, journey(world)):
                print("  ", line)
        assert doubles.api.refused == []
