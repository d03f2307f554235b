"""Where journeys take place: the cluster that KUBECONFIG names, or one that kind makes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e2e.tools import run

ROOT = Path(__file__).resolve().parents[2]
KIND_NAME = "distsync-e2e"
KIND_REDIS_IMAGE = "docker.io/valkey/valkey:8.1"


class NoPlace(Exception):
    """There is no cluster to go to, and this is why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cluster and the images that are there already.

    `next_node_image` is another one of nodes, '' for none; storage class '' is the default one.
    """

    kubeconfig: str
    node_image: str
    operator_image: str
    redis_image: str
    next_node_image: str = ""
    storage_class: str = ""


@contextlib.contextmanager
def find_place(directory: Path, *, keep: bool) -> Iterator[Place]:
    """Yield the cluster to use; a kind cluster is deleted afterwards unless it is to be kept.

    Raises:
        NoPlace: KUBECONFIG is not set and kind or Docker is missing, or images are not named.
    """
    if not shutil.which("kubectl"):
        raise NoPlace("kubectl is not on PATH")
    if kubeconfig := os.environ.get("KUBECONFIG"):
        images = {
            name: os.environ.get(f"E2E_{name}_IMAGE") for name in ("NODE", "OPERATOR", "REDIS")
        }
        missing = [f"E2E_{name}_IMAGE" for name, image in images.items() if not image]
        if missing:
            raise NoPlace(
                f"with KUBECONFIG, images on the cluster are named by {', '.join(missing)}"
            )
        for image in images.values():
            if ":" not in (image or "").rpartition("/")[2]:
                raise NoPlace(f"images are named with their tags, and {image} is not")
        yield Place(
            kubeconfig=str(ROOT / kubeconfig),  # make is run there, and these journeys are not
            storage_class=os.environ.get("E2E_STORAGE_CLASS", ""),
            node_image=images["NODE"] or "",
            operator_image=images["OPERATOR"] or "",
            redis_image=images["REDIS"] or "",
            next_node_image=os.environ.get("E2E_NEXT_NODE_IMAGE", ""),
        )
        return
    if not shutil.which("kind") or not _docker_runs():
        raise NoPlace("neither KUBECONFIG is set nor are kind and a running Docker at hand")
    yield from _kind(directory, keep=keep)


def _docker_runs() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0


def _kind(directory: Path, *, keep: bool) -> Iterator[Place]:
    """Make a cluster of kind with the images of this work tree."""
    place = Place(
        kubeconfig=str(directory / "kubeconfig"),
        node_image="distsync/node:e2e",
        operator_image="distsync/operator:e2e",
        redis_image=KIND_REDIS_IMAGE,
        next_node_image="distsync/node:e2e-next",  # the same by another name
    )
    subprocess.run(["make", "images", "VERSION=e2e"], cwd=ROOT, check=True)
    run(["docker", "tag", place.node_image, place.next_node_image])
    subprocess.run(["docker", "pull", "--quiet", place.redis_image], check=True)
    named = ["--name", KIND_NAME]
    config = ["--config", str(ROOT / "kind-config.yaml"), "--kubeconfig", place.kubeconfig]
    subprocess.run(["kind", "create", "cluster", *named, *config, "--wait=5m"], check=True)
    try:
        nodes = (place.node_image, place.next_node_image)
        for image in (*nodes, place.operator_image, place.redis_image):
            run(["kind", "load", "docker-image", *named, image])
        yield place
    finally:
        if not keep:
            run(["kind", "delete", "cluster", *named, "--kubeconfig", place.kubeconfig])
