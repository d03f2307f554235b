"""The long journeys: under load, with operators, pods and volumes lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from distsync import AsyncClient
from e2e.load_process import LoadProcess
from kube.operator_world import World

pytestmark = [pytest.mark.long, pytest.mark.timeout(1_200)]

MAX_UNAVAILABLE_MS = 2_000


@contextlib.asynccontextmanager
async def loaded(world: World) -> AsyncIterator[dict[str, Any]]:
    """Put load on locks, a queue and the cache; nothing that was acknowledged may get lost, nor a
    lock that is held meanwhile. What the load tells in the end is put into what is yielded."""
    told: dict[str, Any] = {}
    async with (
        AsyncClient(world.url()) as client,
        LoadProcess(world.url(), world.directory / "load.out") as load,
    ):
        held = client.lock("held", ttl=900)
        await held.acquire()
        yield told
        told |= await load.settle()
        print(told)
        assert [(info.name, info.token) async for info in client.locks("held")] == [
            ("held", held.token)
        ]
    assert told["lost"] == []
    assert told["broken"] == []
    assert min(told["done"][what] for what in ("lock", "push", "cache")) > 0


async def three_nodes(world: World) -> None:
    """Make a cluster of three."""
    world.start_operator()
    world.create(replicas=3)
    await world.eventually(lambda: world.ready_with(3), "three nodes ready")


async def restart(world: World) -> None:
    """Have all pods replaced and wait until they are."""
    before = set(world.pods().values())
    world.annotate("restarted-at", "now")
    await world.eventually(
        lambda: not before & set(world.pods().values()) and world.ready_with(3), "restarted"
    )


async def test_three_to_five_to_three_under_load_loses_nothing(world: World) -> None:
    await three_nodes(world)
    async with loaded(world) as told:
        world.change(replicas=5)
        await world.eventually(lambda: world.ready_with(5), "five nodes ready")
        world.change(replicas=3)
        await world.eventually(lambda: world.ready_with(3), "three nodes again")
    assert told["unavailable_ms"] <= MAX_UNAVAILABLE_MS
    # Those of three nodes and of Redis are left.
    await world.eventually(lambda: len(world.claims()) == 4, "volumes of left nodes gone")


async def test_an_operator_killed_at_each_step_goes_on_where_it_was(world: World) -> None:
    world.create(replicas=3)
    async with world.mortal_operator() as deaths:
        await world.eventually(lambda: world.ready_with(3), "three nodes ready", 600)
        async with loaded(world):
            world.change(replicas=4)
            await world.eventually(lambda: world.ready_with(4), "four nodes ready", 600)
            world.change(replicas=3)
            await world.eventually(lambda: world.ready_with(3), "three nodes again", 600)
            await restart(world)
        died = deaths.read_text().splitlines()
    assert world.status["clusterId"] == world.resource["metadata"]["uid"]
    for moment in ("before", "after"):
        for step in (
            "apply Secret demo-secret",
            "apply StatefulSet demo-redis of 1",
            "apply StatefulSet demo of 3",
            "apply StatefulSet demo of 4",
            "add demo-3 as a learner",
            "drain demo-3",
            "remove demo-3 from the cluster",
            "delete Pod demo-0",
            "delete Pod demo-1",
            "delete Pod demo-2",
        ):
            assert f"{moment}: {step}" in died
        assert any(one.startswith(f"{moment}: hand leadership to") for one in died)
    assert "before: create the cluster of demo-0, demo-1, demo-2" in died
    assert "amid: create the cluster" in died


async def test_an_operator_killed_right_after_it_created_a_cluster_creates_no_other(
    world: World,
) -> None:
    world.create(replicas=3)
    async with world.mortal_operator(dies_of="after: create the cluster") as deaths:
        await world.eventually(lambda: world.ready_with(3), "three nodes ready")
        assert len(deaths.read_text().splitlines()) == 1
    assert world.status["clusterId"] == world.resource["metadata"]["uid"]


async def test_a_new_image_is_rolled_out(world: World) -> None:
    await three_nodes(world)
    before, ids = set(world.pods().values()), world.ids()
    async with loaded(world):
        world.change(image="node:2")
        await world.eventually(lambda: world.ready_with(3), "rolled out")
    nodes = world.api.list("Pod", labels={"app.kubernetes.io/component": "node"})
    assert {pod["spec"]["containers"][0]["image"] for pod in nodes} == {"node:2"}
    assert not before & set(world.pods().values())
    assert world.ids() == ids


async def test_a_node_that_is_killed_or_whose_pod_is_deleted_is_the_member_it_was(
    world: World,
) -> None:
    await three_nodes(world)
    ids = world.ids()
    world.kubelet.kill("demo-1")
    await world.eventually(lambda: not world.ready_with(3), "it is missed")
    await world.eventually(lambda: world.ready_with(3), "it is back")
    assert world.ids() == ids
    before = world.pods()["demo-2"]
    world.kubelet.delete("demo-2")
    await world.eventually(
        lambda: world.pods().get("demo-2") not in (None, before) and world.ready_with(3),
        "a new pod is back",
    )
    assert world.ids() == ids


async def test_a_wiped_volume_is_joined_again_under_a_new_identity(world: World) -> None:
    await three_nodes(world)
    ids = world.ids()
    world.kubelet.wipe("demo-1")
    await world.eventually(
        lambda: world.ready_with(3) and world.ids()["demo-1"] != ids["demo-1"],
        "the wiped node is a member again",
    )
    assert {**world.ids(), "demo-1": ""} == {**ids, "demo-1": ""}


async def test_a_volume_is_replaced_on_request_and_all_of_them_grow(world: World) -> None:
    await three_nodes(world)
    ids, claims = world.ids(), world.claims()
    async with loaded(world):
        world.annotate("replace", "demo-1")
        await world.eventually(
            lambda: (
                "distsync.dev/replace" not in world.annotations
                and world.ready_with(3)
                and world.ids()["demo-1"] != ids["demo-1"]
            ),
            "the member is another one",
        )
        pods = world.pods()
        world.change(storage={"size": "4Gi"})

        def has_grown() -> bool:
            # It is away for a moment: deleted and made again around its pods.
            nodes = world.api.get("StatefulSet", "demo")
            template = nodes and nodes["spec"]["volumeClaimTemplates"][0]
            return world.ready_with(3) and template is not None and size_of(template) == "4Gi"

        await world.eventually(has_grown, "larger volumes")
    now = world.claims()
    assert uid_of(now["data-demo-1"]) != uid_of(claims["data-demo-1"])
    assert {name: size_of(claim) for name, claim in now.items()} == {
        "data-demo-0": "4Gi",
        "data-demo-1": "4Gi",
        "data-demo-2": "4Gi",
        "data-demo-redis-0": "2Gi",
    }
    assert world.pods() == pods  # they went on, without their StatefulSet for a moment


async def test_a_second_operator_stands_by_and_takes_over(world: World) -> None:
    first = world.start_operator("operator-0")
    world.create(replicas=1)
    await world.eventually(lambda: world.ready_with(1), "one node ready")
    second = world.start_operator("operator-1")
    await world.eventually(lambda: world.api.reads["get", "Lease"] > 10, "both look at the lease")
    assert holder(world) == "operator-0"
    first.kill()
    first.wait()
    world.change(replicas=2)
    await world.eventually(lambda: world.ready_with(2), "the second one works")
    assert holder(world) == "operator-1"
    assert second.poll() is None


def holder(world: World) -> str:
    (lease,) = world.api.list("Lease")
    return str(lease["spec"]["holderIdentity"])


def uid_of(body: dict[str, dict[str, str]]) -> str:
    return body["metadata"]["uid"]


def size_of(claim: dict[str, dict[str, dict[str, dict[str, str]]]]) -> str:
    return claim["spec"]["resources"]["requests"]["storage"]
