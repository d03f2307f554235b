"""The whole operator against an API double whose pods are real nodes and a real Redis.

It has the rights that its chart gives it and no others: whatever it does here, it may.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from distsync import AsyncClient
from kube.light_nodes import LightKubelet
from kube.operator_world import World, running_world

pytestmark = pytest.mark.timeout(400)
TOLD_WITHIN_SECONDS = 30.0


async def start(world: World) -> None:
    """Start the operator and wait until it works."""
    world.start_operator()
    await world.eventually(lambda: world.api.reads["watch", "DistSyncCluster"], "a watch")


async def writes_while_woken(world: World) -> set[str]:
    """The kinds that are written while events come that change nothing."""
    before = world.api.writes.copy()
    pod = world.api.get("Pod", "demo-0")
    assert pod is not None
    for _ in range(20):
        world.api.put("Pod", pod, verb="MODIFIED")
        await asyncio.sleep(0.1)
    return {kind for _, kind in world.api.writes - before}


async def comes_to_rest(world: World) -> None:
    """Once the last node is in the ring nothing changes, and nothing is written, however often
    events wake the operator."""
    for _ in range(5):
        written = await writes_while_woken(world)
        if written <= {"Lease"}:
            break
    assert written <= {"Lease"}


async def serves_everywhere(world: World) -> None:
    """The ring is whole, and every node takes calls of the cache."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        rings = []
        for number, url in enumerate(world.url().split(",")):
            async with session.get(f"{url}/cluster/ring") as answer:
                rings.append(await answer.json())
            async with session.put(f"{url}/cache/at-{number}", json={"value": url}):
                pass
    assert [server["name"] for server in rings[0]["servers"]] == ["demo-0", "demo-1", "demo-2"]
    assert {ring["epoch"] for ring in rings} == {world.status["ringEpoch"]}


async def says_how_it_is(world: World) -> None:
    """Health and metrics of the operator itself."""
    url = f"http://127.0.0.1:{world.operator_port}"
    async with aiohttp.ClientSession() as session:
        for path in ("/healthz", "/readyz"):
            async with session.get(url + path) as answer:
                assert answer.status == 200
        async with session.get(f"{url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
    assert "distsync_operator_leading 1.0" in lines
    assert "distsync_operator_clusters 1.0" in lines
    assert 'distsync_operator_actions_total{kind="Bootstrap"} 1.0' in lines


async def test_a_cluster_comes_to_be_and_rests_and_goes_without_a_trace(world: World) -> None:
    world.start_operator()
    world.create(replicas=3)
    await world.eventually(lambda: world.ready_with(3), "three nodes ready")
    await serves_everywhere(world)
    assert world.status["clusterId"] == world.resource["metadata"]["uid"]
    assert world.condition("RedisReady")["status"] == "True"
    assert "finalizers" not in world.resource["metadata"]
    assert world.resource["metadata"]["generation"] == 1  # nobody wrote to its spec
    events = [(event["reason"], event["message"]) for event in world.api.list("Event")]
    assert ("Create", "create the cluster of demo-0, demo-1, demo-2") in events
    await says_how_it_is(world)
    async with AsyncClient(world.url()) as client, client.lock("a", ttl=10) as lock:
        assert lock.token

    await comes_to_rest(world)
    world.api.delete("DistSyncCluster", world.resource)
    await world.eventually(lambda: not world.api.list("Pod"), "no pod left")

    # A pass that was under way may have made something for a resource that was gone by then.
    def is_gone() -> bool:
        left = {kind for kind, _, _ in world.api.objects}
        return left <= {"PersistentVolumeClaim", "Lease", "Event"}

    await world.eventually(is_gone, "nothing else left")
    assert world.stop_operators() == [0]


async def test_an_admission_webhook_has_the_last_word_and_the_operator_rests(
    tmp_path: Path,
) -> None:
    def limit(kind: str, body: dict[str, Any]) -> None:
        if kind == "StatefulSet":
            (container,) = body["spec"]["template"]["spec"]["containers"]
            container["resources"]["limits"]["memory"] = "3Gi"

    async with running_world(tmp_path, kubelet=LightKubelet) as world:
        world.api.admission = limit
        await start(world)
        world.create(replicas=3)
        await world.eventually(lambda: world.ready_with(3), "three nodes ready")
        await comes_to_rest(world)
        told = [one["message"] for one in world.api.list("Event") if one["reason"] == "Altered"]
        fields = [f"spec.template.spec.containers[{name}].resources" for name in ("node", "redis")]
        assert [text.rpartition(" changes ")[2] for text in sorted(told)] == [
            f"{field}.limits.memory" for field in fields
        ]


async def test_a_paused_resource_is_observed_and_left_alone(world: World) -> None:
    world.start_operator()
    world.create(replicas=1, paused=True)
    await world.eventually(
        lambda: world.condition("Progressing").get("reason") == "Paused", "the condition"
    )
    assert not world.api.list("StatefulSet")
    world.change(paused=False)
    await world.eventually(lambda: world.ready_with(1), "one node ready")


# --- Bad input: said within 30 s, and mended by itself ------------------------------------------


async def told(world: World, kind: str, reason: str) -> dict[str, Any]:
    """Wait for a condition for as long as it may take; return it."""
    await world.eventually(
        lambda: world.condition(kind).get("reason") == reason,
        f"{kind} because of {reason}",
        TOLD_WITHIN_SECONDS,
    )
    return world.condition(kind)


async def test_an_image_that_does_not_start_is_named_and_mended(world: World) -> None:
    world.kubelet.broken_images.add("nowhere:1")
    await start(world)
    world.create(replicas=1, image="nowhere:1")
    condition = await told(world, "Degraded", "ImagePullBackOff")
    assert condition["status"] == "True"
    assert condition["message"] == "demo-0: no such image"
    world.change(image="node:1")
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    assert world.condition("Degraded")["status"] == "False"


async def test_an_image_of_redis_that_does_not_start_is_named_and_mended(world: World) -> None:
    world.kubelet.broken_images.add("nowhere:1")
    await start(world)
    world.create(replicas=1, redis={"managed": {"image": "nowhere:1"}})
    condition = await told(world, "RedisReady", "ImagePullBackOff")
    assert condition["message"] == "demo-redis-0: no such image"
    world.change(redis={"managed": {}})
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    assert world.condition("Degraded")["status"] == "False"


async def test_a_missing_secret_is_named_and_found_once_it_is_there(world: World) -> None:
    await start(world)
    world.create(replicas=1, redis={"external": {"urlSecretRef": {"name": "queues"}}})
    condition = await told(world, "Degraded", "SecretMissing")
    assert "Secret queues with the key url is not there" in condition["message"]
    assert (await told(world, "RedisReady", "SecretMissing"))["status"] == "False"
    data = {"url": "cmVkaXM6Ly8xMjcuMC4wLjE6MQ=="}
    world.api.create("Secret", {"metadata": {"name": "queues", "namespace": "apps"}, "data": data})
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    assert world.condition("Degraded")["status"] == "False"


async def test_a_storage_class_that_does_not_exist_is_named_until_it_does(world: World) -> None:
    await start(world)
    world.create(replicas=1, storage={"storageClassName": "fast"})
    condition = await told(world, "Degraded", "Unschedulable")
    assert condition["status"] == "True"
    assert condition["message"].startswith("demo-0: ")
    assert "data-demo-0 has no volume of storage class fast" in condition["message"]
    world.kubelet.storage_classes.add("fast")
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    assert world.condition("Degraded")["status"] == "False"


async def test_a_secret_of_redis_that_is_deleted_is_made_anew_and_redis_takes_it(
    world: World,
) -> None:
    await start(world)
    world.create(replicas=1)
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    async with AsyncClient(world.url()) as client:
        await client.queue("q").push("before")
    secret = world.api.get("Secret", "demo-redis")
    assert secret is not None
    before = {pod["metadata"]["uid"] for pod in world.api.list("Pod")}
    world.api.delete("Secret", secret)
    await world.eventually(
        lambda: (
            not before & {pod["metadata"]["uid"] for pod in world.api.list("Pod")}
            and world.ready_with(1)
        ),
        "new pods, of Redis too",
    )
    async with AsyncClient(world.url()) as client:
        await client.queue("q").push("after")
        messages = await client.queue("q").pop(max=2)
    assert [message.body for message in messages] == ["before", "after"]


async def test_volumes_that_cannot_grow_are_named_and_hold_up_nothing(world: World) -> None:
    world.kubelet.storage_classes.add("fixed")
    world.api.fixed_classes.add("fixed")
    await start(world)
    world.create(replicas=1, storage={"storageClassName": "fixed"})
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    before = world.pods()
    world.change(storage={"storageClassName": "fixed", "size": "4Gi"})
    condition = await told(world, "Degraded", "Forbidden")
    assert "must support resize" in condition["message"]
    world.annotate("restarted-at", "now")
    await world.eventually(
        lambda: world.pods() and not set(before.values()) & set(world.pods().values()), "a new pod"
    )
    world.api.fixed_classes.clear()
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    (claim,) = (one for name, one in world.claims().items() if name == "data-demo-0")
    assert claim["spec"]["resources"]["requests"]["storage"] == "4Gi"


async def test_pods_that_a_quota_forbids_are_told_of_and_made_once_it_does_not(
    tmp_path: Path,
) -> None:
    async with running_world(tmp_path, kubelet=LightKubelet) as world:
        world.kubelet.quota = 1  # enough for Redis
        await start(world)
        world.create(replicas=1)
        condition = await told(world, "Degraded", "FailedCreate")
        assert condition["status"] == "True"
        assert 'pods "demo-0" is forbidden: exceeded quota' in condition["message"]
        world.kubelet.quota = None
        await world.eventually(lambda: world.ready_with(1), "one node ready")
        assert world.condition("Degraded")["status"] == "False"
        assert world.api.refused == []


async def test_pods_are_looked_after_when_service_monitors_are_gone(tmp_path: Path) -> None:
    async with running_world(tmp_path, kubelet=LightKubelet) as world:
        world.api.unserved.clear()
        await start(world)
        world.create(replicas=1)
        await world.eventually(lambda: world.ready_with(1), "one node ready")
        assert world.api.get("ServiceMonitor", "demo") is not None
        world.api.unserved.add("ServiceMonitor")
        world.change(service={"type": "NodePort"})
        await world.eventually(lambda: world.ready_with(1), "the change is seen")
        service = world.api.get("Service", "demo")
        assert service is not None
        assert service["spec"]["type"] == "NodePort"


async def test_an_upgraded_operator_passes_by_a_cluster_that_is_not_well(world: World) -> None:
    world.kubelet.broken_images.add("nowhere:1")
    await start(world)
    world.create("sick", replicas=1, redis={"managed": {"image": "nowhere:1"}})
    world.create(replicas=1)
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    await world.eventually(lambda: world.api.get("StatefulSet", "sick"), "the other one begun")
    assert world.stop_operators() == [0]
    world.operators.clear()
    world.start_operator(DISTSYNC_OPERATOR_NODE_IMAGE="node:2")

    def image_of(name: str) -> str:
        body = world.api.get("StatefulSet", name)
        assert body is not None
        return str(body["spec"]["template"]["spec"]["containers"][0]["image"])

    await world.eventually(lambda: image_of("demo") == "node:2", "the new image")
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    await world.eventually(lambda: image_of("sick") == "node:2", "its turn has come too")


async def test_a_node_that_is_wanted_again_while_its_old_volume_goes_gets_a_new_one(
    world: World,
) -> None:
    await start(world)
    world.create(replicas=2)
    await world.eventually(lambda: world.ready_with(2), "two nodes ready")
    old = world.claims()["data-demo-1"]["metadata"]
    world.change(replicas=1)
    await world.eventually(lambda: "demo-1" not in world.pods(), "its pod is gone")
    assert "deletionTimestamp" not in old
    world.change(replicas=2)
    await world.eventually(lambda: world.ready_with(2), "two nodes ready")
    assert world.claims()["data-demo-1"]["metadata"]["uid"] != old["uid"]


# --- Watches, rights, death -------------------------------------------------------------------


async def test_a_watch_that_is_too_old_to_go_on_is_begun_anew(world: World) -> None:
    await start(world)
    world.api.cut_watches()
    world.create(replicas=1, paused=True)
    world.api.forget_history()  # no watch will ever tell of it
    await world.eventually(
        lambda: world.condition("Progressing").get("reason") == "Paused", "the condition"
    )


async def test_an_operator_of_namespaces_needs_no_rights_elsewhere(tmp_path: Path) -> None:
    values = {"watch": {"namespaces": ["apps", "other"]}}
    async with running_world(tmp_path, values) as world:
        world.start_operator()
        world.create(replicas=1)
        await world.eventually(lambda: world.ready_with(1), "one node ready")
        assert world.stop_operators() == [0]
        assert world.api.refused == []


async def test_an_operator_that_dies_while_it_creates_a_cluster_creates_one(world: World) -> None:
    world.create(replicas=3)
    async with world.mortal_operator(dies_of="create the cluster") as deaths:
        await world.eventually(lambda: world.ready_with(3), "three nodes ready")
        died = deaths.read_text().splitlines()
    assert [one.partition(":")[0] for one in died] == [
        "before",
        "amid",
    ]  # the others hear of it from the first
    assert world.status["clusterId"] == world.resource["metadata"]["uid"]
