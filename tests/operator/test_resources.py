"""What the builders make."""

from __future__ import annotations

import os
import socketserver
import subprocess
import threading
from base64 import b64decode
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from distsync_operator import names
from distsync_operator.errors import SpecError
from distsync_operator.matching import lacking, stamped
from distsync_operator.quantity import parse_quantity
from distsync_operator.resources.config import config_map
from distsync_operator.resources.disruption import disruption_budget
from distsync_operator.resources.monitor import service_monitor
from distsync_operator.resources.network import nodes_policy, redis_policy
from distsync_operator.resources.redis import (
    redis_config,
    redis_service,
    redis_stateful_set,
)
from distsync_operator.resources.secret import redis_secret, secret_value, shared_secret
from distsync_operator.resources.services import client_service, headless_service
from distsync_operator.resources.statefulset import stateful_set
from distsync_operator.spec import Manifest, read_cluster
from kube.samples import DEFAULTS, UID, cluster
from redis_server import RedisServer, free_port

RESOURCE = cluster()
MANAGED = RESOURCE.spec.redis.managed
assert MANAGED is not None
EVERYTHING: list[Manifest] = [
    headless_service(RESOURCE),
    client_service(RESOURCE),
    stateful_set(RESOURCE, DEFAULTS, replicas=3, redis_hash="h"),
    disruption_budget(RESOURCE),
    config_map(RESOURCE),
    shared_secret(RESOURCE, None, "token"),
    nodes_policy(RESOURCE, DEFAULTS),
    service_monitor(RESOURCE),
    redis_secret(RESOURCE, None, "token"),
    redis_config(RESOURCE, MANAGED),
    redis_service(RESOURCE),
    redis_policy(RESOURCE),
    redis_stateful_set(RESOURCE, MANAGED, DEFAULTS, redis_hash="h"),
]
IDS = [f"{one['kind']}-{one['metadata']['name']}" for one in EVERYTHING]
SETS = [one for one in EVERYTHING if one["kind"] == "StatefulSet"]


def nodes(**spec: Any) -> Manifest:
    """The StatefulSet of a resource with this spec."""
    return stateful_set(cluster(**spec), DEFAULTS, replicas=3, redis_hash="h")


def container(manifest: Manifest) -> Manifest:
    """Its container."""
    only: Manifest = manifest["spec"]["template"]["spec"]["containers"][0]
    return only


@pytest.mark.parametrize("manifest", EVERYTHING, ids=IDS)
def test_every_object_is_labelled_and_goes_with_its_resource(manifest: Manifest) -> None:
    metadata = manifest["metadata"]
    assert metadata["namespace"] == "apps"
    assert metadata["labels"][names.MANAGED_BY_LABEL] == "distsync-operator"
    assert metadata["labels"][names.CLUSTER_LABEL] == "demo"
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "distsync.dev/v1alpha1",
            "kind": "DistSyncCluster",
            "name": "demo",
            "uid": UID,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


@pytest.mark.parametrize("manifest", SETS, ids=["nodes", "redis"])
def test_pods_meet_the_restricted_standard(manifest: Manifest) -> None:
    pod = manifest["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert (security["runAsUser"], security["fsGroup"]) == (65532, 65532)
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(manifest)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
    }
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}} in pod["volumes"]


def test_redis_is_outside_the_selectors_of_nodes() -> None:
    redis_labels = SETS[1]["spec"]["template"]["metadata"]["labels"].items()
    for manifest in (headless_service(RESOURCE), client_service(RESOURCE)):
        assert not manifest["spec"]["selector"].items() <= redis_labels
    for manifest in (SETS[0], disruption_budget(RESOURCE)):
        assert not manifest["spec"]["selector"]["matchLabels"].items() <= redis_labels


def test_names_are_published_before_nodes_are_ready() -> None:
    spec = headless_service(RESOURCE)["spec"]
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True


def test_the_operator_decides_when_pods_are_replaced() -> None:
    spec = SETS[0]["spec"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] == 60
    hook = container(SETS[0])["lifecycle"]["preStop"]["exec"]["command"]
    assert "sh" not in hook[0]
    assert disruption_budget(RESOURCE)["spec"]["maxUnavailable"] == 1


def test_the_volume_policy_is_the_one_of_the_resource() -> None:
    spec = nodes(storage={"size": "9Gi", "storageClassName": "fast"})["spec"]
    assert spec["persistentVolumeClaimRetentionPolicy"] == {
        "whenScaled": "Delete",
        "whenDeleted": "Retain",
    }
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "9Gi"
    assert claim["storageClassName"] == "fast"


def test_the_pod_template_of_the_resource_is_added() -> None:
    manifest = nodes(
        image="mine:1",
        podTemplate={
            "labels": {"team": "a", names.CLUSTER_LABEL: "forged"},
            "annotations": {"note": "b"},
            "env": [{"name": "DISTSYNC_LOG_LEVEL", "value": "debug"}],
            "nodeSelector": {"disk": "ssd"},
            "affinity": {"podAffinity": {}},
            "priorityClassName": "high",
            "imagePullSecrets": [{"name": "pull"}],
            "securityContext": {"fsGroup": 7},
            "resources": {"limits": {"memory": "2Gi"}},
        },
    )
    template = manifest["spec"]["template"]
    assert template["metadata"]["labels"]["team"] == "a"
    assert template["metadata"]["labels"][names.CLUSTER_LABEL] == "demo"
    assert template["metadata"]["annotations"]["note"] == "b"
    assert template["spec"]["nodeSelector"] == {"disk": "ssd"}
    assert template["spec"]["priorityClassName"] == "high"
    assert template["spec"]["securityContext"]["fsGroup"] == 7
    assert template["spec"]["securityContext"]["runAsUser"] == 65532
    node = container(manifest)
    assert node["image"] == "mine:1"
    assert node["env"][-1] == {"name": "DISTSYNC_LOG_LEVEL", "value": "debug"}
    assert node["resources"] == {"limits": {"memory": "2Gi"}}


@pytest.mark.parametrize(
    "spec",
    [
        {"image": "other"},
        {"raft": {"voters": 3}},
        {"raft": {"heartbeatMs": 50}},
        {"cache": {"durability": "WriteThrough"}},
        {"podTemplate": {"annotations": {"a": "b"}}},
    ],
)
def test_what_a_running_node_has_to_learn_changes_the_template(spec: dict[str, Any]) -> None:
    assert nodes(**spec)["spec"]["template"] != nodes()["spec"]["template"]


@pytest.mark.parametrize(
    "spec", [{"service": {"type": "NodePort"}}, {"paused": True}, {"storage": {"size": "5Gi"}}]
)
def test_what_no_node_has_to_know_leaves_the_template_alone(spec: dict[str, Any]) -> None:
    assert nodes(**spec)["spec"]["template"] == nodes()["spec"]["template"]


def test_an_external_redis_is_read_from_the_named_key() -> None:
    spec = {"redis": {"external": {"urlSecretRef": {"name": "queues", "key": "dsn"}}}}
    manifest = nodes(**spec)
    volumes = {one["name"]: one for one in manifest["spec"]["template"]["spec"]["volumes"]}
    assert volumes["redis"]["secret"]["secretName"] == "queues"
    assert volumes["redis"]["secret"]["items"] == [{"key": "dsn", "path": "url"}]
    environment = {one["name"]: one.get("value") for one in container(manifest)["env"]}
    assert environment["DISTSYNC_REDIS_FILE"] == "/etc/distsync/redis/url"


def test_secrets_that_exist_are_kept() -> None:
    first = shared_secret(RESOURCE, None, "first")
    again = shared_secret(RESOURCE, first["data"], "second")
    assert secret_value(again["data"], "secret") == "first"
    redis = redis_secret(RESOURCE, redis_secret(RESOURCE, None, "pw")["data"], "other")
    assert secret_value(redis["data"], "url") == "redis://:pw@demo-redis.apps.svc:6379/0"
    assert b64decode(redis["data"]["auth.conf"]) == b"requirepass pw\n"


@pytest.mark.parametrize("broken", [{}, {"secret": ""}, {"secret": "%%%"}, {"secret": "/w=="}])
def test_a_secret_without_a_usable_value_gets_a_new_one(broken: dict[str, str]) -> None:
    assert secret_value(shared_secret(RESOURCE, broken, "new")["data"], "secret") == "new"


def test_the_peer_port_and_redis_are_closed_to_all_but_nodes_and_operator() -> None:
    client_rule, peer_rule = nodes_policy(RESOURCE, DEFAULTS)["spec"]["ingress"]
    assert "from" not in client_rule
    own, operator = peer_rule["from"]
    assert own["podSelector"]["matchLabels"] == names.selector("demo", "node")
    assert operator["namespaceSelector"] == {
        "matchLabels": {"kubernetes.io/metadata.name": "operators"}
    }
    redis_rule = redis_policy(RESOURCE)["spec"]["ingress"][0]
    assert redis_rule["from"] == [own]


def test_named_clients_do_not_shut_out_the_operator() -> None:
    clients = [{"podSelector": {"matchLabels": {"app": "shop"}}}]
    policy = nodes_policy(cluster(networkPolicy={"clients": clients}), DEFAULTS)
    allowed = policy["spec"]["ingress"][0]["from"]
    assert allowed[0] == clients[0]
    _, operator = policy["spec"]["ingress"][1]["from"]
    assert operator in allowed


def test_redis_keeps_everything_or_refuses() -> None:
    spec = {"redis": {"managed": {"resources": {"limits": {"memory": "1Gi"}}}}}
    resource = cluster(**spec)
    assert resource.spec.redis.managed is not None
    lines = redis_config(resource, resource.spec.redis.managed)["data"]["redis.conf"].splitlines()
    assert f"maxmemory {1024**3 * 6 // 10}" in lines
    assert {"appendonly yes", "appendfsync always", "maxmemory-policy noeviction"} <= set(lines)
    assert "include /etc/redis/secret/auth.conf" in lines


def probe_redis(port: int, password: str = "") -> int:
    """Run the probe of the managed Redis against a port; return its exit code."""
    program, *arguments = container(SETS[1])["startupProbe"]["exec"]["command"]
    return subprocess.run(
        [program, "-p", str(port), *arguments],
        env={**os.environ, "REDISCLI_AUTH": password},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode


def test_the_probe_of_redis_wants_a_server_that_takes_commands(tmp_path: Path) -> None:
    port = free_port()
    assert probe_redis(port) != 0
    with RedisServer(tmp_path, port=port, options={"requirepass": "pw"}):
        assert probe_redis(port, "pw") == 0
        assert probe_redis(port, "wrong") != 0


def test_the_probe_of_redis_fails_while_it_loads_its_data() -> None:
    class Loading(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"-LOADING Redis is loading the dataset in memory\r\n")
            self.rfile.read()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Loading) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert probe_redis(server.server_address[1]) != 0
        server.shutdown()


def test_quantities_are_read_as_kubernetes_reads_them() -> None:
    assert parse_quantity("1Gi") == parse_quantity("1024Mi") == 1024**3
    assert parse_quantity("500m") == parse_quantity("0.5")
    assert parse_quantity("1e3") == parse_quantity("1k") == 1000
    assert parse_quantity(2) == 2
    assert parse_quantity("two") is None
    assert parse_quantity("1.Gi") == 1024**3


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "defaulted": 2}, {"a": 1}, True),
        ({"cpu": "500m"}, {"cpu": "0.5"}, True),
        ({"cpu": "500m"}, {"cpu": "0.6"}, False),
        ({}, {"a": [], "b": {}, "c": ""}, True),
        ({"a": [1]}, {"a": []}, False),
        ({"a": [{"name": "x", "v": 1}, {"name": "y"}]}, {"a": [{"name": "x", "v": 1}]}, True),
        ({"a": [{"name": "x", "v": 1}]}, {"a": [{"name": "x", "v": 2}]}, False),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
)
def test_what_the_api_server_adds_is_no_difference(live: Any, wanted: Any, same: bool) -> None:
    assert (not lacking(live, wanted)) is same


def test_what_is_not_wanted_any_more_is_a_difference() -> None:
    before, after = nodes(podTemplate={"env": [{"name": "A", "value": "1"}]}), nodes()
    assert lacking(stamped(before), stamped(before)) == frozenset()
    assert lacking(stamped(before), stamped(after)) == {"metadata.annotations.distsync.dev/applied"}


def test_what_is_lacking_is_named_by_its_path() -> None:
    wanted = nodes()
    live = deepcopy(wanted)
    live["spec"]["replicas"] = 2
    container(live)["resources"]["limits"]["memory"] = "2Gi"
    del live["spec"]["template"]["spec"]["volumes"][1]
    assert lacking(live, wanted) == {
        "spec.replicas",
        "spec.template.spec.containers[node].resources.limits.memory",
        "spec.template.spec.volumes[redis]",
    }


@pytest.mark.parametrize(
    ("metadata", "spec", "said"),
    [
        ({}, {"replicas": 10}, "replicas"),
        ({}, {"redis": {}}, "exactly one"),
        ({}, {"replicas": "three"}, "replicas"),
        ({"name": "n" * 41}, {}, "longer than 40"),
    ],
)
def test_a_resource_that_no_rule_let_through_is_named(
    metadata: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    body = {"metadata": {"name": "demo", "namespace": "a", "uid": "u", **metadata}, "spec": spec}
    with pytest.raises(SpecError, match=said):
        read_cluster(body)
