"""What journeys share: the clusters of Kubernetes and ours, what is asked of them, the load."""

from __future__ import annotations

import json
import os
from typing import Any

from e2e.place import ROOT, Place
from e2e.tools import Helm, JourneyFailed, Kubectl, Manifest, eventually

NAME = "locks"
RELEASE = "distsync-e2e"
READY_SECONDS = float(os.environ.get("E2E_READY_SECONDS", "60"))
CHANGE_SECONDS = float(os.environ.get("E2E_CHANGE_SECONDS", "300"))
MAX_UNAVAILABLE_MS = 2_000
DEFINITION = "customresourcedefinition/distsyncclusters.distsync.dev"
LEFT = {"distsync.dev/e2e": "true"}  # what journeys made outside of their namespaces, and these
NODES = f"distsync.dev/cluster={NAME},app.kubernetes.io/component=node"


class World:
    """A cluster of Kubernetes with two namespaces of ours."""

    def __init__(self, place: Place, prefix: str) -> None:
        self.place = place
        self.helm = Helm(place.kubeconfig)
        self.operator = Kubectl(place.kubeconfig, f"{prefix}-operator")
        self.kubectl = Kubectl(place.kubeconfig, f"{prefix}-clusters")
        self.namespaces = [self.operator.namespace, self.kubectl.namespace]

    # --- The resource -----------------------------------------------------------------------

    def resource(self, name: str = NAME) -> Manifest:
        """Return a DistSyncCluster."""
        return self.kubectl.get("distsynccluster", name)

    def conditions(self, name: str = NAME) -> dict[str, Manifest]:
        """Return the conditions that speak of the present spec."""
        resource = self.resource(name)
        return {
            one["type"]: one
            for one in resource.get("status", {}).get("conditions", [])
            if one.get("observedGeneration") == resource["metadata"]["generation"]
        }

    def condition(self, kind: str, name: str = NAME) -> str:
        """Return the status of a condition that speaks of the present spec, else ''."""
        return str(self.conditions(name).get(kind, {}).get("status", ""))

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

    def wait_new_pods(self, before: dict[str, str], *pods: str) -> None:
        """Wait until these pods (all of them, where none is named) are others than before."""
        wanted = pods or tuple(before)
        eventually(
            f"new pods {', '.join(wanted)}",
            lambda: all(self.pods().get(name) not in (None, before[name]) for name in wanted),
            CHANGE_SECONDS,
        )

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
    for kind in ("namespaces", "storageclasses"):
        world.kubectl("delete", kind, f"--selector={label}={value}", "--timeout=280s")
    for kind in ("clusterrole", "clusterrolebinding"):
        world.kubectl("delete", kind, RELEASE, "--ignore-not-found")


def storage_class(world: World) -> Manifest:
    """Return the storage class that volumes will be of.

    Raises:
        JourneyFailed: there is none of that name, or no default one.
    """
    key = "storageclass.kubernetes.io/is-default-class"
    classes = world.kubectl.get("storageclasses")["items"]
    wanted = world.place.storage_class
    for one in classes:
        metadata = one["metadata"]
        is_default = (metadata.get("annotations") or {}).get(key) == "true"
        if metadata["name"] == wanted if wanted else is_default:
            return dict(one)
    raise JourneyFailed(
        f"no storage class {wanted or 'is the default'}; E2E_STORAGE_CLASS names one of"
        f" {sorted(one['metadata']['name'] for one in classes)}"
    )


# --- Steps ----------------------------------------------------------------------------------------


def same_members(world: World, ids: dict[str, str], but: str = "") -> None:
    """See that members are who they were, but for the one of a name.

    Raises:
        JourneyFailed: another one changed, or that one did not.
    """
    now = world.ids()
    changed = {name for name in ids.keys() | now.keys() if ids.get(name) != now.get(name)}
    if changed != ({but} if but else set()):
        raise JourneyFailed(f"members were {ids} and are {now}")


def patch(world: World, spec: Manifest, name: str = NAME) -> None:
    """Change fields of the spec."""
    content = json.dumps({"spec": spec})
    world.kubectl("patch", f"distsynccluster/{name}", "--type=merge", f"--patch={content}")


def annotate(world: World, key: str, value: str) -> None:
    """Annotate the resource with distsync.dev/<key>."""
    word = f"distsync.dev/{key}={value}"
    world.kubectl("annotate", f"distsynccluster/{NAME}", word, "--overwrite")


def evict(world: World, pod: str, *, check: bool = True) -> str:
    """Ask for the eviction of a pod; return what is answered."""
    metadata = {"name": pod, "namespace": world.kubectl.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{world.kubectl.namespace}/pods/{pod}/eviction"
    words = ("create", f"--raw={path}", "--filename=-")
    return world.kubectl(*words, stdin=json.dumps(body), check=check)


def kill_operator(world: World) -> None:
    """End the operator without a chance to finish anything."""
    selector = "--selector=app.kubernetes.io/component=operator"
    world.operator("delete", "pods", selector, "--grace-period=0", "--force")


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
