"""Charts, manifests and the definition, for tests: rendered, read and judged without a cluster."""

from __future__ import annotations

import copy
import functools
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ("distsync", "distsync-cluster")
KUBERNETES = "1.36"

Manifest = dict[str, Any]


def render(chart: str, values: Manifest) -> list[Manifest]:
    """Return what a chart installs as release `locks` in the namespace `ns`."""
    loaded = helm_python.Chart.load(ROOT / "helm" / chart)
    loaded.validate_schema(values)
    rendered = loaded.render(values, name="locks", namespace="ns")
    return [
        document
        for name, text in sorted(rendered.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def kustomize(directory: str) -> list[Manifest]:
    """Return what a kustomization under k8s/ comes to; only resources are understood."""
    root = ROOT / "k8s" / directory
    wanted = yaml.safe_load((root / "kustomization.yaml").read_text())
    if set(wanted) != {"apiVersion", "kind", "resources"}:
        raise ValueError(f"{directory}: {sorted(wanted)}")
    found: list[Manifest] = []
    for name in wanted["resources"]:
        path = (root / name).resolve()
        if path.is_dir():
            found += kustomize(str(path.relative_to(ROOT / "k8s")))
        else:
            found += [one for one in yaml.safe_load_all(path.read_text()) if one]
    return found


def by_kind(documents: list[Manifest], kind: str) -> list[Manifest]:
    """Return the documents of a kind."""
    return [document for document in documents if document["kind"] == kind]


def template_of(documents: list[Manifest]) -> Manifest:
    """Return the pod template of the only Deployment."""
    (deployment,) = by_kind(documents, "Deployment")
    return dict(deployment["spec"]["template"])


def strictly_valid(document: Manifest) -> None:
    """Judge a manifest of a kind of Kubernetes; raises with what is wrong or unknown."""
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@functools.cache
def _crd() -> Manifest:
    return dict(yaml.safe_load((ROOT / "k8s/crd/distsyncclusters.yaml").read_text()))


def crd() -> Manifest:
    """Return a copy of the definition."""
    return copy.deepcopy(_crd())


def version_of_crd() -> Manifest:
    """Return its only version."""
    (version,) = _crd()["spec"]["versions"]
    return dict(version)


def tracked_files(*patterns: str) -> list[Path]:
    """Return files that are in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines()]
