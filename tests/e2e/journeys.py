"""What a person does with clusters, in order; each journey starts where the one before ended.

A journey says in its first line what it shows. It yields what it did, line by line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from e2e.place import ROOT, Place
from e2e.tools import Helm, JourneyFailed, Kubectl, Manifest, eventually

NAME = "locks"
RELEASE = "distsync-e2e"
READY_SECONDS = float(os.environ.get("E2E_READY_SECONDS", "60"))
CHANGE_SECONDS = float(os.environ.get("E2E_CHANGE_SECONDS", "300"))
MAX_UNAVAILABLE_MS = 2_000
DEFINITION = "customresourcedefinition/distsyncclusters.distsync.dev"
LEFT = {"distsync.dev/e2e": "true"}  # namespaces that journeys made
NODES = f"distsync.dev/cluster={NAME},app.kubernetes.io/component=node"

Steps = Iterator[str]


class World:
    """A cluster of Kubernetes with two namespaces of ours."""

    def __init__(self, place: Place, prefix: str) -> None:
        self.place = place
        self.helm = Helm(place.kubeconfig)
        self.operator = Kubectl(place.kubeconfig, f"{prefix}-operator")
        self.kubectl = Kubectl(place.kubeconfig, f"{prefix}-clusters")
        self.namespaces = [self.operator.namespace, self.kubectl.namespace]

    # --- The resource -----------------------------------------------------------------------

    def resource(self) -> Manifest:
        """Return the DistSyncCluster."""
        return self.kubectl.get("distsynccluster", NAME)

    def condition(self, kind: str) -> str:
        """Return the status of a condition that speaks of the present spec, else ''."""
        resource = self.resource()
        for one in resource.get("status", {}).get("conditions", []):
            is_current = one.get("observedGeneration") == resource["metadata"]["generation"]
            if one["type"] == kind and is_current:
                return str(one["status"])
        return ""

    def wait_settled(self, replicas: int, within_seconds: float = CHANGE_SECONDS) -> Manifest:
        """Wait until so many members serve and nothing is under way; return the status."""

        def settled() -> Manifest | None:
            status = self.resource().get("status", {})
            members = [one for one in status.get("members", []) if one.get("ready")]
            is_so = (
                self.condition("Ready") == "True"
                and not status.get("operation")
                and status.get("readyReplicas") == len(members) == replicas
                and len(self.ready_pods()) == replicas  # now, and not when the status was written
            )
            return dict(status) if is_so else None

        found = eventually(f"{replicas} nodes ready", settled, within_seconds)
        return dict(found)

    def ids(self) -> dict[str, str]:
        """Return the identity of each member."""
        members = self.resource().get("status", {}).get("members", [])
        return {one["name"]: one["id"] for one in members}

    def pods(self) -> dict[str, str]:
        """Return the uid of each pod of a node."""
        found = self.kubectl.get("pods", f"--selector={NODES}")["items"]
        return {one["metadata"]["name"]: one["metadata"]["uid"] for one in found}

    def ready_pods(self) -> list[str]:
        """Return the names of the pods of nodes that are ready and stay."""
        return [
            one["metadata"]["name"]
            for one in self.kubectl.get("pods", f"--selector={NODES}")["items"]
            if "deletionTimestamp" not in one["metadata"]
            and {"type": "Ready", "status": "True"}.items()
            <= next(
                (c for c in one["status"].get("conditions", []) if c["type"] == "Ready"), {}
            ).items()
        ]

    def install_cluster(self) -> None:
        """Install the chart distsync-cluster."""
        chart = ROOT / "helm/distsync-cluster"
        self.helm.install(NAME, chart, self.kubectl.namespace, cluster_values(self.place))


def operator_values(place: Place) -> Manifest:
    """Return the values of the chart distsync: nothing is pulled."""
    repository, _, tag = place.operator_image.rpartition(":")
    node_repository, _, node_tag = place.node_image.rpartition(":")
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "nodeImage": {"repository": node_repository, "tag": node_tag},
        "redisImage": place.redis_image,
    }


def cluster_values(place: Place) -> Manifest:
    """Return the values of the chart distsync-cluster: nothing is pulled."""
    repository, _, tag = place.node_image.rpartition(":")
    storage = {"storageClassName": place.storage_class} if place.storage_class else {}
    redis = {"managed": {"storage": storage}}
    spec = {"replicas": 3, "imagePullPolicy": "Never", "storage": storage, "redis": redis}
    return {
        "name": NAME,
        "spec": spec,
        "test": {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}},
    }


# --- Journeys -------------------------------------------------------------------------------------


def install(world: World) -> Steps:
    """The operator is installed, and a bad resource is refused with the reason."""
    clear_leftovers(world)
    check_storage(world)
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
    bad = {
        "apiVersion": "distsync.dev/v1alpha1",
        "kind": "DistSyncCluster",
        "metadata": {"name": "bad", "namespace": world.kubectl.namespace},
        "spec": {"raft": {"heartbeatMs": 400}},
    }
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


def rolling_restart(world: World) -> Steps:
    """Every pod is replaced under load, one after another."""
    start_load(world)
    before = world.pods()
    stamp = "distsync.dev/restarted-at=e2e"
    world.kubectl("annotate", f"distsynccluster/{NAME}", stamp, "--overwrite")
    eventually(
        "new pods",
        lambda: (
            set(world.pods()) == set(before)
            and not set(world.pods().values()) & set(before.values())
        ),
        CHANGE_SECONDS,
    )
    world.wait_settled(3)
    yield "all pods are new"
    yield judged(stop_load(world), "longest_gap_ms")


def pod_deleted(world: World) -> Steps:
    """A pod that is deleted comes back as the member it was."""
    name, ids = f"{NAME}-1", world.ids()
    old = world.pods()[name]
    world.kubectl("delete", "pod", name, "--wait=true")
    eventually("a new pod", lambda: world.pods().get(name) not in (None, old), CHANGE_SECONDS)
    world.wait_settled(3)
    if world.ids() != ids:
        raise JourneyFailed(f"members were {ids} and are {world.ids()}")
    yield f"{name} is back under its identity"


def volume_wiped(world: World) -> Steps:
    """A node that lost its volume comes back as a new member."""
    name, ids = f"{NAME}-2", world.ids()
    world.kubectl("delete", "persistentvolumeclaim", f"data-{name}", "--wait=false")
    world.kubectl("delete", "pod", name, "--wait=true")
    eventually(
        "a new identity", lambda: world.ids().get(name) not in (None, ids[name]), CHANGE_SECONDS
    )
    world.wait_settled(3)
    others = {one: identity for one, identity in world.ids().items() if one != name}
    if others != {one: identity for one, identity in ids.items() if one != name}:
        raise JourneyFailed(f"members were {ids} and are {world.ids()}")
    yield f"{name} has a new identity, the others kept theirs"


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
    rolling_restart,
    pod_deleted,
    volume_wiped,
    paused,
    delete,
    uninstall,
)


# --- Before ---------------------------------------------------------------------------------------


def clear_leftovers(world: World) -> None:
    """Take away what journeys left that failed, and nothing else.

    Raises:
        JourneyFailed: somebody else uses DistSync here; these journeys would delete its definition.
    """
    owner = "jsonpath={.metadata.annotations.meta\\.helm\\.sh/release-name}"
    found = world.kubectl("get", DEFINITION, "--ignore-not-found", f"--output={owner}")
    if not found and world.kubectl("get", DEFINITION, "--ignore-not-found", "--output=name"):
        found = "nobody"
    if found not in ("", RELEASE):
        raise JourneyFailed(f"DistSync is installed here already, by {found}")
    if found:
        world.kubectl("delete", DEFINITION, "--timeout=120s")
    ((label, value),) = LEFT.items()
    world.kubectl("delete", "namespaces", f"--selector={label}={value}", "--timeout=280s")
    for kind in ("clusterrole", "clusterrolebinding"):
        world.kubectl("delete", kind, RELEASE, "--ignore-not-found")


def check_storage(world: World) -> None:
    """See that volumes will be made.

    Raises:
        JourneyFailed: there is no such storage class, or no default one.
    """
    key = "storageclass.kubernetes.io/is-default-class"
    classes = {
        one["metadata"]["name"]: (one["metadata"].get("annotations") or {}).get(key) == "true"
        for one in world.kubectl.get("storageclasses")["items"]
    }
    wanted = world.place.storage_class
    if wanted not in classes if wanted else not any(classes.values()):
        raise JourneyFailed(
            f"no storage class {wanted or 'is the default'}; E2E_STORAGE_CLASS names one of"
            f" {sorted(classes)}"
        )


# --- Steps ----------------------------------------------------------------------------------------


def patch(world: World, spec: Manifest) -> None:
    """Change fields of the spec."""
    content = json.dumps({"spec": spec})
    world.kubectl("patch", f"distsynccluster/{NAME}", "--type=merge", f"--patch={content}")


def start_load(world: World) -> None:
    """Start the load in a pod and wait until it works."""
    program = (ROOT / "tests/e2e/load_program.py").read_text()
    metadata = {"name": "load", "namespace": world.kubectl.namespace}
    world.kubectl("delete", "pod/load", "configmap/load", "--ignore-not-found", "--wait=true")
    config: Manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    world.kubectl.apply({**config, "data": {"load.py": program}}, load_pod(world.place, metadata))
    eventually("load", lambda: "started" in world.kubectl("logs", "load", check=False), 120)


def load_pod(place: Place, metadata: Manifest) -> Manifest:
    """Return the pod of the load."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 5,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "load",
                    "image": place.node_image,
                    "imagePullPolicy": "Never",
                    "command": ["python3", "/etc/load/load.py", "e2e"],
                    "env": [{"name": "DISTSYNC_URL", "value": f"http://{NAME}:8080"}],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "program", "mountPath": "/etc/load"}],
                }
            ],
            "volumes": [{"name": "program", "configMap": {"name": "load"}}],
        },
    }


def stop_load(world: World) -> dict[str, Any]:
    """Have the load settle; return what it tells."""
    stop = "import os, signal; os.kill(1, signal.SIGTERM)"
    world.kubectl("exec", "load", "--", "python3", "-c", stop)
    phase = "jsonpath={.status.phase}"
    eventually(
        "the load to settle",
        lambda: world.kubectl("get", "pod", "load", f"--output={phase}") in ("Succeeded", "Failed"),
        120,
    )
    last = world.kubectl("logs", "load").strip().splitlines()[-1]
    try:
        return dict(json.loads(last))
    except ValueError:
        raise JourneyFailed(f"the load ended with: {last}") from None


def judged(told: dict[str, Any], bounded: str = "unavailable_ms") -> str:
    """Return what the load tells in a line; `bounded` is what may last two seconds.

    Raises:
        JourneyFailed: it lost something, or locks paused for too long.
    """
    if told["lost"] or told["broken"] or told[bounded] > MAX_UNAVAILABLE_MS:
        raise JourneyFailed(json.dumps(told))
    done = ", ".join(f"{count} {what}" for what, count in sorted(told["done"].items()))
    away, longest = told["unavailable_ms"], told["longest_gap_ms"]
    return f"load: {done}; nothing lost; no locks for {away} ms in all, {longest} ms at most"
