"""`plan` against a model cluster: the operator dies anywhere, the wish changes midway, pods die and
volumes are lost. No action takes the quorum, no second cluster comes to be, and in the end
everything is as wanted. A failure prints its seed and what happened.
"""

from __future__ import annotations

import random

import pytest

from distsync_operator import names
from distsync_operator.model import Plan
from distsync_operator.plan import plan
from distsync_operator.spec import Storage
from kube.model_cluster import ModelCluster
from kube.samples import cluster, desired

PASSES = 1_500


def run(world: ModelCluster, rng: random.Random, passes: int, *, dies: float) -> None:
    """Let operator and world take turns."""
    for _ in range(passes):
        for _ in range(rng.randint(0, 4)):
            world.step()
        action = plan(world.observe(), world.wish).action
        if action is None:
            continue
        fate = rng.random()
        if fate < dies / 2:
            continue  # it died before the call
        world.execute(action, partly=fate < dies)


def converge(world: ModelCluster) -> None:
    """Let nothing more go wrong; everything has to become as wanted."""
    for _ in range(PASSES):
        world.step()
        decision = plan(world.observe(), world.wish)
        if decision.trouble is not None and decision.trouble.reason == "LastVoter":
            world.change_wish(replicas=3)  # as it says
        if decision.action is not None:
            world.execute(decision.action)
        elif decision == Plan():
            world.settle()
            if plan(world.observe(), world.wish) == Plan():
                check(world)
                return
    pytest.fail(world.tell(f"it does not come to an end: {plan(world.observe(), world.wish)}"))


def check(world: ModelCluster) -> None:
    """Everything is as wanted."""
    wanted = {names.pod("demo", ordinal) for ordinal in range(world.wish.cluster.spec.replicas)}
    (raft,) = world.rafts.values()
    assert sorted(member.name for member in raft.members) == sorted(wanted), world.tell("members")
    assert world.ring == wanted, world.tell("ring")
    assert {f"demo-{ordinal}" for ordinal in world.pods} == wanted, world.tell("pods")
    assert all(pod.ready and pod.revision == world.revision for pod in world.pods.values())
    assert not any(disk.replacing for disk in world.disks.values()), world.tell("replacing")
    sizes = {disk.size for disk in world.disks.values() if not disk.terminating}
    assert sizes == {world.wish.cluster.spec.storage.size}, world.tell("sizes")
    assert names.REPLACE_ANNOTATION not in world.wish.cluster.annotations


def change(world: ModelCluster, rng: random.Random) -> None:
    """Want something else, or let something go wrong that a cluster survives."""
    spec = world.wish.cluster.spec
    match rng.choice(["scale", "scale", "roll", "grow", "replace", "crash", "wipe", "broken"]):
        case "scale":
            world.change_wish(replicas=rng.randint(1, 7))
        case "roll":
            world.change_wish(image=f"node:{rng.randint(1, 99)}")
        case "grow":
            size = int(spec.storage.size.removesuffix("Gi")) + 1
            world.change_wish(storage=Storage(size=f"{size}Gi", retention=spec.storage.retention))
        case "replace":
            pod = names.pod("demo", rng.randrange(spec.replicas))
            world.change_wish(annotations={names.REPLACE_ANNOTATION: pod})
            world.log.append(f"replace {pod}")
        case "crash":
            world.crash()
        case "wipe":
            world.wipe()
        case "broken":
            world.broken.add(world.revision)
            world.log.append("pods of this revision do not start any more")


def heal(world: ModelCluster) -> None:
    """Mend what the operator cannot: a broken image, a request that is impossible."""
    world.broken.clear()
    world.change_wish(annotations={})


# 248: a volume is lost while a member is being replaced.
@pytest.mark.parametrize("seed", [*range(16), 248])
def test_whatever_happens_the_quorum_is_kept_and_the_wish_comes_true(seed: int) -> None:
    rng = random.Random(seed)
    first = cluster(
        replicas=rng.choice([1, 2, 3, 3, 5]),
        raft={"voters": rng.choice([3, 7])},
        storage={"retention": {"whenScaled": rng.choice(["Delete", "Retain"])}},
    )
    world = ModelCluster(desired(first), seed)
    for _ in range(rng.randint(1, 6)):
        run(world, rng, rng.randint(5, 120), dies=0.3)
        change(world, rng)
    run(world, rng, 60, dies=0.3)
    heal(world)
    converge(world)


@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 7, 9])
def test_a_cluster_of_any_size_comes_to_be(replicas: int) -> None:
    world = ModelCluster(desired(cluster(replicas=replicas)), replicas)
    converge(world)


def test_resources_restored_over_kept_volumes_adopt_the_cluster_that_is_on_them() -> None:
    world = ModelCluster(desired(cluster(replicas=5)), 1)
    converge(world)
    (before,) = world.rafts
    world.objects.clear()
    world.pods.clear()
    world.change_wish(replicas=3)
    converge(world)
    assert set(world.rafts) == {before}
