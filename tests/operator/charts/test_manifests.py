"""What is under k8s/, made by `make generate`, or needed to build an image and to run Compose."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from crd_rules import errors_of
from distsync.command.node import node
from distsync_node.settings import parse_members
from kubernetes_charts import ROOT, by_kind, crd, kustomize, render, strictly_valid, tracked_files

Manifest = dict[str, Any]
SAMPLES = sorted(path.name for path in (ROOT / "k8s/samples").iterdir())
REQUIREMENT = re.compile(r"^[A-Za-z0-9][\w.\-\[\]]*==\S+( ;.*)? \\$")


def test_what_is_generated_is_current() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "helm/generate.py", "--check"], capture_output=True, text=True
    )
    assert ended.returncode == 0, f"run `make generate`:\n{ended.stdout}{ended.stderr}"


def test_kustomize_installs_the_definition_and_the_operator() -> None:
    documents = kustomize("operator")
    assert by_kind(documents, "CustomResourceDefinition") == [crd()]
    for document in documents:
        strictly_valid(document)
    (namespace,) = by_kind(documents, "Namespace")
    places = {one["metadata"].get("namespace") for one in documents} - {None}
    assert places == {namespace["metadata"]["name"]}


def test_kustomize_gives_the_operator_what_the_chart_gives_it() -> None:
    (role,) = by_kind(kustomize("operator"), "ClusterRole")
    (same,) = by_kind(render("distsync", {}), "ClusterRole")
    assert role["rules"] == same["rules"]


@pytest.mark.parametrize("sample", SAMPLES)
def test_samples_are_valid(sample: str) -> None:
    documents = kustomize(f"samples/{sample}")
    assert documents
    for document in documents:
        match document["apiVersion"]:
            case "distsync.dev/v1alpha1":
                assert errors_of(document) == []
            case "keda.sh/v1alpha1":
                assert document["kind"] == "ScaledObject"
            case _:
                strictly_valid(document)


def test_the_program_of_the_sample_client_is_python() -> None:
    (config,) = by_kind(kustomize("samples/client"), "ConfigMap")
    ast.parse(config["data"]["main.py"])


def test_keda_scales_the_sample_client_on_a_number_that_a_node_answers() -> None:
    from distsync_node.queues.types import QueueStats

    (scaled,) = by_kind(kustomize("samples/keda"), "ScaledObject")
    (client,) = by_kind(kustomize("samples/client"), "Deployment")
    assert scaled["spec"]["scaleTargetRef"]["name"] == client["metadata"]["name"]
    (trigger,) = scaled["spec"]["triggers"]
    part, _, field = trigger["metadata"]["valueLocation"].partition(".")
    assert part == "stats"
    assert field in QueueStats.__struct_fields__


# --- Images -------------------------------------------------------------------------------------

DOCKERFILES = [ROOT / "node/Dockerfile", ROOT / "operator/Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_run_without_rights_and_install_by_hash(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    installs = re.findall(r"pip(?: --python \S+)? install ([^&\n]*)", text)
    assert installs
    for options in installs:
        assert ("--require-hashes" in options) != ("--no-index" in options)
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users == ["65532:65532"]
    assert re.search(r"^ARG PYTHON_IMAGE=\S+$", text, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2
    assert "apt" not in text.split()
    assert re.search(r"^ENTRYPOINT \[", text, re.MULTILINE), "no shell is needed"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_install_from_lock_files_that_exist_and_have_hashes(path: Path) -> None:
    (named,) = re.findall(r"^COPY (requirements/.*) requirements/$", path.read_text(), re.MULTILINE)
    for name in named.split():
        lines = (ROOT / name).read_text().splitlines()
        pinned = [line for line in lines if not line.startswith((" ", "#"))]
        assert pinned
        assert all(REQUIREMENT.match(line) for line in pinned), name
        assert "://" not in "\n".join(lines)


def test_the_wheel_of_an_image_is_built_from_what_reaches_the_builder(tmp_path: Path) -> None:
    """What .dockerignore lets through is enough, and the wheel has scripts and data in it."""
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    context = tmp_path / "context"
    for path in tracked_files(*(line[1:] for line in ignore if line.startswith("!"))):
        target = context / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, *offline, "--wheel-dir", tmp_path, context], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "distsync_node/queues/scripts/push.lua" in names
    assert "distsync/py.typed" in names
    assert any(name.endswith(".dist-info/entry_points.txt") for name in names)


# --- Compose ------------------------------------------------------------------------------------


def compose() -> Manifest:
    return dict(yaml.safe_load((ROOT / "compose.yaml").read_text()))


def test_compose_sets_options_that_nodes_have() -> None:
    known = {f"DISTSYNC_{(option.name or '').upper()}" for option in node.params}
    services = compose()["services"]
    nodes = {name: one for name, one in services.items() if name.startswith("node")}
    assert set(nodes) == {"node1", "node2", "node3"}
    for name, service in nodes.items():
        environment = service["environment"]
        assert set(environment) - {"DISTSYNC_URL"} <= known
        context = node.make_context("node", [], auto_envvar_prefix=None, resilient_parsing=True)
        for option in node.params:
            value = environment.get(f"DISTSYNC_{(option.name or '').upper()}")
            # Paths are those of the container; what this machine has there says nothing.
            if value is not None and not isinstance(option.type, click.Path):
                option.type_cast_value(context, value)
        assert environment["DISTSYNC_NAME"] == name
        members = dict(parse_members(environment["DISTSYNC_MEMBERS"]))
        assert members == {one: f"http://{one}:8180" for one in nodes}
        assert service["networks"] == ["distributed_net"]
        assert service["healthcheck"]["test"][0] == "CMD"


def test_the_redis_of_compose_keeps_what_it_acknowledged() -> None:
    command = compose()["services"]["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"]


def test_every_volume_and_network_of_compose_is_declared() -> None:
    document = compose()
    used = {
        volume.partition(":")[0]
        for service in document["services"].values()
        for volume in service.get("volumes", [])
    }
    assert used == set(document["volumes"])
    assert set(document["networks"]) == {"distributed_net"}
    assert document["networks"]["distributed_net"]["name"] == "distributed_net"


def test_kind_has_three_workers_in_three_zones() -> None:
    nodes = yaml.safe_load((ROOT / "kind-config.yaml").read_text())["nodes"]
    assert [node["role"] for node in nodes] == ["control-plane", *["worker"] * 3]
    zones = {node.get("labels", {}).get("topology.kubernetes.io/zone") for node in nodes[1:]}
    assert len(zones - {None}) == 3
