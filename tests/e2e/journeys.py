"""What a person does with clusters, in order; each journey starts where the one before ended.

A journey says in its first line what it shows. It yields what it did, line by line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from distsync_operator.quantity import parse_quantity
from e2e.place import ROOT
from e2e.tools import JourneyFailed, Manifest, eventually
from e2e.world import (
    CHANGE_SECONDS,
    DEFINITION,
    LEFT,
    NAME,
    READY_SECONDS,
    RELEASE,
    World,
    annotate,
    clear_leftovers,
    cluster_values,
    evict,
    judged,
    kill_operator,
    operator_values,
    patch,
    same_members,
    start_load,
    stop_load,
    storage_class,
)

TOLD_SECONDS = 30.0
LARGER = "3Gi"

Steps = Iterator[str]


def install(world: World) -> Steps:
    """The operator is installed, and a bad resource is refused with the reason."""
    clear_leftovers(world)
    storage_class(world)
    # What is not allowed in a namespace of the restricted standard has no place in here.
    labels = {"pod-security.kubernetes.io/enforce": "restricted", **LEFT}
    for namespace in world.namespaces:
        metadata = {"name": namespace, "labels": labels}
        world.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    chart = ROOT / "helm/distsync"
    world.helm.install(RELEASE, chart, world.operator.namespace, operator_values(world.place))
    world.operator("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s")
    yield "the operator is available"
    world.kubectl("wait", DEFINITION, "--for=condition=Established", "--timeout=60s")
    bad = single(world, "bad", raft={"heartbeatMs": 400})
    said = world.kubectl(
        "create", "--dry-run=server", "--filename=-", stdin=json.dumps(bad), check=False
    )
    if "raft.electionTimeoutMs must be at least 5 times raft.heartbeatMs" not in said:
        raise JourneyFailed(f"a bad resource was answered with: {said}")
    yield "a bad resource was refused with its reason"


def create(world: World) -> Steps:
    """A cluster of three is made and ready in time."""
    world.install_cluster()
    status = world.wait_settled(3, READY_SECONDS)
    yield f"ready, led by {status['leader']}"


def use(world: World) -> Steps:
    """Lock, queue and cache are used from a pod: `helm test`."""
    eventually("helm test", lambda: world.helm.test(NAME, world.kubectl.namespace) or "ok", 120)
    yield "took a lock, moved a message, read a cached value"


def scale(world: World) -> Steps:
    """3 -> 5 -> 3 under load: nothing acknowledged is lost, locks pause for 2 s in all."""
    start_load(world)
    yield "load runs"
    for replicas in (5, 3):
        world.kubectl("scale", f"distsynccluster/{NAME}", f"--replicas={replicas}")
        status = world.wait_settled(replicas)
        if len(status["members"]) != replicas:
            raise JourneyFailed(f"{len(status['members'])} members after scaling to {replicas}")
        yield f"{replicas} members serve"
    yield judged(stop_load(world))


def operator_killed(world: World) -> Steps:
    """The operator is killed amid a change, and the next one goes on where it was."""
    start_load(world)
    for replicas, change in ((5, "ScaleUp"), (3, "ScaleDown")):
        world.kubectl("scale", f"distsynccluster/{NAME}", f"--replicas={replicas}")

        def step(change: str = change) -> str:
            operation = world.resource().get("status", {}).get("operation", {})
            return str(operation.get("step", "")) if operation.get("type") == change else ""

        reached = eventually(f"a step of {change}", step, CHANGE_SECONDS)
        kill_operator(world)
        yield f"killed at '{reached}' of {change}"
        world.wait_settled(replicas)
        yield f"{replicas} members serve"
    yield judged(stop_load(world))


def rolling_restart(world: World) -> Steps:
    """Every pod is replaced under load, one after another."""
    start_load(world)
    before = world.pods()
    annotate(world, "restarted-at", "e2e")
    world.wait_new_pods(before)
    world.wait_settled(3)
    yield "all pods are new"
    yield judged(stop_load(world), "longest_gap_ms")


def image_changed(world: World) -> Steps:
    """Another image of the nodes is rolled out under load."""
    image = world.place.next_node_image
    if not image:
        yield "skipped: E2E_NEXT_NODE_IMAGE names no other image"
        return
    start_load(world)
    before, ids = world.pods(), world.ids()
    patch(world, {"image": image})
    world.wait_new_pods(before)
    world.wait_settled(3)
    same_members(world, ids)
    yield f"all pods run {image}, as the members they were"
    yield judged(stop_load(world), "longest_gap_ms")


def pod_deleted(world: World) -> Steps:
    """A pod that is deleted comes back as the member it was."""
    name, before, ids = f"{NAME}-1", world.pods(), world.ids()
    world.kubectl("delete", "pod", name, "--wait=true")
    world.wait_new_pods(before, name)
    world.wait_settled(3)
    same_members(world, ids)
    yield f"{name} is back under its identity"


def evicted(world: World) -> Steps:
    """Pods are evicted as a drain of their machine does it: one, and the next once it is back."""
    ids = world.ids()
    for name, other in ((f"{NAME}-0", f"{NAME}-1"), (f"{NAME}-1", f"{NAME}-2")):
        before = world.pods()
        eventually(f"eviction of {name}", lambda name=name: evict(world, name), CHANGE_SECONDS)
        said = evict(world, other, check=False)
        if "disruption budget" not in said:
            raise JourneyFailed(f"while {name} is away, eviction of {other}: {said}")
        yield f"{name} goes, and {other} may not meanwhile"
        world.wait_new_pods(before, name)
    world.wait_settled(3)
    same_members(world, ids)
    yield "both are back under their identities"


def volume_wiped(world: World) -> Steps:
    """A node that lost its volume comes back as a new member."""
    name, ids = f"{NAME}-2", world.ids()
    world.kubectl("delete", "persistentvolumeclaim", f"data-{name}", "--wait=false")
    world.kubectl("delete", "pod", name, "--wait=true")
    wait_new_member(world, name, ids)
    yield f"{name} has a new identity, the others kept theirs"


def member_replaced(world: World) -> Steps:
    """A member is replaced with its volume because an annotation asks for it."""
    name, ids = f"{NAME}-1", world.ids()
    claims = claims_of(world)
    annotate(world, "replace", name)
    wait_new_member(world, name, ids)
    if "distsync.dev/replace" in world.resource()["metadata"].get("annotations", {}):
        raise JourneyFailed("the request is still there")
    if claims_of(world)[name]["metadata"]["uid"] == claims[name]["metadata"]["uid"]:
        raise JourneyFailed(f"{name} has its old volume")
    yield f"{name} has a new identity and a new volume, the others kept theirs"


def volumes_grown(world: World) -> Steps:
    """Volumes grow around their pods, where the storage class allows it."""
    storage = storage_class(world)
    if not storage.get("allowVolumeExpansion"):
        yield f"skipped: storage class {storage['metadata']['name']} does not allow it"
        return
    before = world.pods()
    patch(world, {"storage": {"size": LARGER}})
    wanted = parse_quantity(LARGER)

    def are_larger() -> bool:
        sizes = [
            parse_quantity(claim.get("status", {}).get("capacity", {}).get("storage", "0"))
            for claim in claims_of(world).values()
        ]
        (template,) = world.kubectl.get("statefulset", NAME)["spec"]["volumeClaimTemplates"]
        is_told = template["spec"]["resources"]["requests"]["storage"] == LARGER
        return is_told and all(size and wanted and size >= wanted for size in sizes)

    eventually("larger volumes", are_larger, CHANGE_SECONDS)
    world.wait_settled(3)
    if world.pods() != before:
        raise JourneyFailed("pods were replaced meanwhile")
    yield f"every volume has {LARGER}, and no pod was replaced"


def paused(world: World) -> Steps:
    """A paused resource is reported on and left alone."""
    patch(world, {"paused": True, "replicas": 5})
    eventually("a report", lambda: world.condition("Progressing") == "Unknown", CHANGE_SECONDS)
    replicas = world.kubectl.get("statefulset", NAME)["spec"]["replicas"]
    if replicas != 3:
        raise JourneyFailed(f"the StatefulSet was scaled to {replicas}")
    yield "a change of replicas did nothing"
    patch(world, {"paused": False, "replicas": 3})
    world.wait_settled(3)
    yield "it goes on"


def secret_missing(world: World) -> Steps:
    """A Secret that is missing is named in time, and found once it is there."""
    name = "no-secret"
    redis = {"external": {"urlSecretRef": {"name": name}}}
    world.kubectl.apply(single(world, name, redis=redis))
    yield wait_told(world, name, "SecretMissing")
    secret: Manifest = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
    # No queue is used here: a Redis that does not answer keeps no node from being ready.
    world.kubectl.apply({**secret, "stringData": {"url": "redis://127.0.0.1:1"}})
    yield wait_mended(world, name)


def image_missing(world: World) -> Steps:
    """An image that does not start is named in time, and mended by another."""
    name = "no-image"
    world.kubectl.apply(single(world, name, image="distsync.invalid/none:1"))
    yield wait_told(world, name, "ErrImageNeverPull")
    patch(world, {"image": world.place.node_image}, name)
    yield wait_mended(world, name)


def class_missing(world: World) -> Steps:
    """A storage class that does not exist is named in time, and used once it does."""
    name = f"{world.kubectl.namespace}-class"
    storage = {"storageClassName": name, "retention": {"whenDeleted": "Delete"}}
    world.kubectl.apply(single(world, "no-class", storage=storage))
    told = wait_told(world, "no-class", "Unschedulable")
    if name not in told:
        raise JourneyFailed(f"the class is not named: {told}")
    yield told
    usable = {key: one for key, one in storage_class(world).items() if key != "metadata"}
    world.kubectl.apply({**usable, "metadata": {"name": name, "labels": LEFT}})
    yield wait_mended(world, "no-class")
    world.kubectl("delete", "storageclass", name)


def delete(world: World) -> Steps:
    """Deleting the resource leaves its volumes; made again, it is the same cluster."""
    cluster_id = world.resource()["status"]["clusterId"]
    world.kubectl("delete", f"distsynccluster/{NAME}", "--timeout=120s")
    kinds = ("pods", "statefulsets", "services", "configmaps", "secrets", "networkpolicies")

    def left() -> list[str]:
        return [
            f"{kind}/{name}"
            for kind in kinds
            for name in world.kubectl.names(kind, f"distsync.dev/cluster={NAME}")
        ]

    eventually("everything gone", lambda: not left(), CHANGE_SECONDS)
    claims = world.kubectl.names("persistentvolumeclaims", f"distsync.dev/cluster={NAME}")
    if len(claims) < 3:
        raise JourneyFailed(f"only {claims} were kept")
    yield f"gone but for {len(claims)} volumes"
    world.install_cluster()
    status = world.wait_settled(3)
    if status["clusterId"] != cluster_id:
        raise JourneyFailed(f"the cluster was {cluster_id} and is {status['clusterId']}")
    yield "made again: the cluster that it was"


def uninstall(world: World) -> Steps:
    """The operator goes first, then the cluster: nothing is stuck, the definition is kept."""
    world.helm.uninstall(RELEASE, world.operator.namespace)
    world.kubectl("get", DEFINITION)
    if len(world.pods()) != 3:
        raise JourneyFailed("a cluster did not survive its operator")
    yield "the operator is gone, the cluster runs, the definition is kept"
    world.helm.uninstall(NAME, world.kubectl.namespace)
    eventually("pods gone", lambda: not world.pods(), CHANGE_SECONDS)
    world.kubectl("delete", DEFINITION, "--timeout=120s")
    for namespace in world.namespaces:
        world.kubectl("delete", "namespace", namespace, "--timeout=300s")
    yield "nothing is left"


JOURNEYS: tuple[Callable[[World], Steps], ...] = (
    install,
    create,
    use,
    scale,
    operator_killed,
    rolling_restart,
    image_changed,
    pod_deleted,
    evicted,
    volume_wiped,
    member_replaced,
    volumes_grown,
    paused,
    secret_missing,
    image_missing,
    class_missing,
    delete,
    uninstall,
)


# --- Parts ----------------------------------------------------------------------------------------


def single(world: World, name: str, **spec: Manifest | str) -> Manifest:
    """Return a resource of one node that leaves no volume behind; `spec` replaces fields."""
    base = cluster_values(world.place)["spec"]
    storage = {**base["storage"], "retention": {"whenDeleted": "Delete"}}
    return {
        "apiVersion": "distsync.dev/v1alpha1",
        "kind": "DistSyncCluster",
        "metadata": {"name": name},
        "spec": {**base, "replicas": 1, "storage": storage, **spec},
    }


def wait_told(world: World, name: str, reason: str) -> str:
    """Wait until a resource is degraded for a reason, as long as that may take; return a line."""

    def message() -> str:
        degraded = world.conditions(name).get("Degraded", {})
        is_so = degraded.get("status") == "True" and degraded.get("reason") == reason
        return str(degraded["message"]) if is_so else ""

    return f"{reason}: {eventually(f'{name}: {reason}', message, TOLD_SECONDS)}"


def wait_mended(world: World, name: str) -> str:
    """Wait until a resource is ready, then delete it; return a line."""
    eventually(f"{name} ready", lambda: world.condition("Ready", name) == "True", CHANGE_SECONDS)
    if world.condition("Degraded", name) != "False":
        raise JourneyFailed(f"{name} is ready and degraded")
    world.kubectl("delete", f"distsynccluster/{name}", "--timeout=120s")
    return "mended, and ready by itself"


def wait_new_member(world: World, name: str, ids: dict[str, str]) -> None:
    """Wait until the member of a name is another one, and all others are who they were."""
    eventually(
        f"a new identity of {name}",
        lambda: world.ids().get(name) not in (None, ids[name]),
        CHANGE_SECONDS,
    )
    world.wait_settled(3)
    same_members(world, ids, but=name)


def claims_of(world: World) -> dict[str, Manifest]:
    """Return the volume claims of nodes by the names of their pods."""
    selector = f"--selector=distsync.dev/cluster={NAME},app.kubernetes.io/component=node"
    found = world.kubectl.get("persistentvolumeclaims", selector)["items"]
    return {one["metadata"]["name"].removeprefix("data-"): one for one in found}
