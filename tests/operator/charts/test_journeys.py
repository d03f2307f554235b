"""What `make e2e` brings to a cluster, and what it says where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crd_rules import errors_of
from e2e.journeys import JOURNEYS
from e2e.place import Place
from e2e.world import cluster_values, load_pod, operator_values
from kubernetes_charts import ROOT, by_kind, render, strictly_valid, template_of

PLACE = Place(
    kubeconfig="none",
    node_image="mirror.example:5000/distsync/node:e2e",
    operator_image="mirror.example:5000/distsync/operator:e2e",
    redis_image="redis:7",
)


def go(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the journeys with only kubectl on PATH, if there is one."""
    tools = tmp_path / "bin"
    tools.mkdir()
    if kubectl := shutil.which("kubectl"):
        (tools / "kubectl").symlink_to(kubectl)
    else:
        (tools / "kubectl").write_text("#!/bin/sh\n")
        (tools / "kubectl").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
    return subprocess.run(
        [sys.executable, "-m", "e2e"],
        cwd=ROOT / "tests",
        env={**kept, "PATH": str(tools), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "neither KUBECONFIG is set nor are kind and a running Docker at hand"),
        ({"KUBECONFIG": "x", "E2E_NODE_IMAGE": "a:b"}, "E2E_OPERATOR_IMAGE, E2E_REDIS_IMAGE"),
        (
            {
                "KUBECONFIG": "x",
                "E2E_NODE_IMAGE": "a:b",
                "E2E_OPERATOR_IMAGE": "mirror:5000/a",
                "E2E_REDIS_IMAGE": "a:b",
            },
            "images are named with their tags, and mirror:5000/a is not",
        ),
    ],
)
def test_without_a_cluster_it_says_so_and_ends_with_2(
    environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    ended = go(tmp_path, **environment)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert reason in line


def test_nothing_is_pulled() -> None:
    operator = template_of(render("distsync", operator_values(PLACE)))
    (container,) = operator["spec"]["containers"]
    assert container["image"] == PLACE.operator_image
    environment = {one["name"]: one.get("value") for one in container["env"]}
    assert environment["DISTSYNC_OPERATOR_NODE_IMAGE"] == PLACE.node_image
    assert environment["DISTSYNC_OPERATOR_REDIS_IMAGE"] == PLACE.redis_image
    documents = render("distsync-cluster", cluster_values(PLACE))
    (cluster,) = by_kind(documents, "DistSyncCluster")
    assert cluster["spec"]["imagePullPolicy"] == "Never"
    assert errors_of(cluster) == []
    (test,) = by_kind(documents, "Pod")
    for one in (container, *test["spec"]["initContainers"], *test["spec"]["containers"]):
        assert one["imagePullPolicy"] == "Never"


def test_the_pod_of_the_load_is_valid_and_meets_the_restricted_standard() -> None:
    pod: dict[str, Any] = load_pod(PLACE, {"name": "load", "namespace": "ns"})
    strictly_valid(pod)
    (container,) = pod["spec"]["containers"]
    assert container["image"] == PLACE.node_image
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_journey_says_what_it_shows() -> None:
    for journey in JOURNEYS:
        (line,) = (journey.__doc__ or "").splitlines()
        assert line.endswith(".")
