"""kubectl and helm as a person runs them, and what is saved when a journey fails."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python

Manifest = dict[str, Any]

COMMAND_SECONDS = 300.0
POLL_SECONDS = 0.5


class JourneyFailed(Exception):
    """What was expected did not come true."""


def run(command: list[str], *, stdin: str | None = None, check: bool = True) -> str:
    """Run a command and return its output.

    Raises:
        JourneyFailed: it ended with something else than 0, said with what it printed.
    """
    try:
        ended = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise JourneyFailed(str(error)) from error
    if check and ended.returncode != 0:
        raise JourneyFailed(f"{' '.join(command)}: {ended.stderr.strip() or ended.stdout.strip()}")
    return ended.stdout if ended.returncode == 0 else ended.stdout + ended.stderr


def eventually(what: str, probe: Callable[[], Any], within_seconds: float) -> Any:
    """Return the first true value of `probe`.

    Raises:
        JourneyFailed: there was none in time, said with the last value.
    """
    deadline = time.monotonic() + within_seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            if last := probe():
                return last
        except (JourneyFailed, helm_python.HelmError) as error:
            last = error
        time.sleep(POLL_SECONDS)
    raise JourneyFailed(f"{what}: not within {within_seconds:.0f} s; last: {last}")


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl with a kubeconfig and a namespace."""

    kubeconfig: str
    namespace: str

    def __call__(self, *words: str, stdin: str | None = None, check: bool = True) -> str:
        """Run it and return its output."""
        where = ["kubectl", f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}"]
        return run([*where, *words], stdin=stdin, check=check)

    def get(self, *words: str) -> Manifest:
        """Return what `get` finds."""
        return dict(json.loads(self("get", *words, "--output=json")))

    def apply(self, *documents: Manifest) -> None:
        """Apply manifests."""
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(documents)})
        self("apply", "--filename=-", stdin=content)

    def names(self, kind: str, selector: str = "") -> list[str]:
        """Return the names of what there is of a kind."""
        found = self.get(kind, *([f"--selector={selector}"] if selector else []))
        return sorted(item["metadata"]["name"] for item in found["items"])


class Helm:
    """The command `helm` where it is installed, else the same as a library."""

    def __init__(self, kubeconfig: str) -> None:
        self._kubeconfig = kubeconfig
        self._command = shutil.which("helm")

    def install(self, name: str, chart: Path, namespace: str, values: Manifest) -> None:
        """Install or upgrade a release; the namespace exists."""
        if self._command:
            words = ("upgrade", "--install", name, str(chart), "--values=-")
            self._run(*words, namespace=namespace, stdin=json.dumps(values))
            return
        with self._library(namespace) as library:
            try:
                library.status(name)
            except helm_python.HelmNotFoundError:
                library.install(chart, name, values, namespace=namespace, timeout=300)
            else:
                library.upgrade(chart, name, values, namespace=namespace, timeout=300)

    def test(self, name: str, namespace: str) -> str:
        """Run the tests of a release; return their output."""
        if self._command:
            return self._run("test", name, namespace=namespace)
        with self._library(namespace) as library:
            return str(library.test(name, timeout=300))

    def uninstall(self, name: str, namespace: str) -> None:
        """Uninstall a release."""
        if self._command:
            self._run("uninstall", name, "--ignore-not-found", namespace=namespace)
            return
        with self._library(namespace) as library:
            library.uninstall(name, ignore_not_found=True, timeout=300)

    def _library(self, namespace: str) -> helm_python.Config:
        return helm_python.Config(kubeconfig_path=self._kubeconfig, namespace=namespace)

    def _run(self, *words: str, namespace: str, stdin: str | None = None) -> str:
        where = [f"--kubeconfig={self._kubeconfig}", f"--namespace={namespace}"]
        return run([self._command or "helm", *where, *words], stdin=stdin)


def save_evidence(kubectl: Kubectl, namespaces: list[str], directory: Path) -> None:
    """Save logs, events and resources of some namespaces."""
    directory.mkdir(parents=True, exist_ok=True)
    for namespace in namespaces:
        there = Kubectl(kubectl.kubeconfig, namespace)
        kinds = "distsyncclusters,statefulsets,deployments,pods,services,persistentvolumeclaims"
        for name, words in {
            "resources.yaml": ("get", kinds + ",configmaps,networkpolicies", "--output=yaml"),
            "events.txt": ("get", "events", "--sort-by=.lastTimestamp"),
            "describe.txt": ("describe", "pods"),
        }.items():
            (directory / f"{namespace}-{name}").write_text(there(*words, check=False))
        for pod in there("get", "pods", "--output=name", check=False).split():
            for previous in ((), ("--previous",)):
                log = there("logs", pod, "--all-containers", "--prefix", *previous, check=False)
                name = f"{namespace}-{pod.rpartition('/')[2]}{'-previous' if previous else ''}.log"
                (directory / name).write_text(log)
