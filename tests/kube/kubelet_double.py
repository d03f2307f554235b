"""The StatefulSet controller and the kubelet in this process: pods are real processes on loopback.

Every pod name has an address of its own in 127.0.0.0/8 and keeps it, which is what DNS does in a
cluster. The environment and the files of a container are those of its manifest; only paths and
names of hosts are those of this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from kube.api_double import ApiDouble, Body, is_ready
from redis_server import default_server

PROBE_SECONDS = 0.2
KILL_SECONDS = 30.0
COLLECT_SECONDS = 1.0  # how late the garbage collector is


class KubeletDouble:
    """Runs what StatefulSets in the API double want; an async context manager."""

    def __init__(self, api: ApiDouble, directory: Path) -> None:
        self.api = api
        self.directory = directory
        self.processes: dict[str, subprocess.Popen[bytes]] = {}  # by uid of the pod
        self.broken_images: set[str] = set()
        self.storage_classes: set[str] = set()  # besides the default one
        self.quota: int | None = None  # of pods
        self._gave_up: dict[str, list[str]] = {}  # by uid: a StatefulSet and its pods at that time
        self._unowned_since: dict[str, float] = {}  # by uid: claims whose pod is gone
        self._addresses: dict[str, str] = {}
        self._numbers = itertools.count(1)
        self._ending: set[asyncio.Task[None]] = set()

    def address(self, pod: str) -> str:
        """Return the address of a pod's name."""
        if pod not in self._addresses:
            number = next(self._numbers)
            self._addresses[pod] = (
                f"127.{20 + os.getpid() % 200}.{os.getpid() // 200 % 250}.{number}"
            )
        return self._addresses[pod]

    async def __aenter__(self) -> KubeletDouble:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._task, *self._ending):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for process in self.processes.values():
            process.kill()
            process.wait()
        await self._session.close()

    def log_of(self, pod: str) -> str:
        """What the container of a pod said."""
        path = self.directory / f"{pod}.log"
        return path.read_text() if path.exists() else ""

    def kill(self, pod: str) -> None:
        """kill -9 of the process in a pod; return when it is dead."""
        body = self.api.get("Pod", pod)
        assert body is not None
        process = self.processes[body["metadata"]["uid"]]
        process.kill()
        process.wait()

    def delete(self, pod: str) -> None:
        """Delete a pod, as an eviction does."""
        body = self.api.get("Pod", pod)
        assert body is not None
        self._terminate(body)

    def wipe(self, pod: str) -> None:
        """Lose what is on the volume of a pod, and its process."""
        claim = self.api.get("PersistentVolumeClaim", f"data-{pod}")
        assert claim is not None
        self.kill(pod)
        shutil.rmtree(self._volume(claim))

    async def _run(self) -> None:
        changed = self.api.watch_changes()
        while True:
            changed.clear()
            for body in self.api.list("StatefulSet"):
                self._reconcile(body)
            self._bind_claims()
            for pod in self.api.list("Pod"):
                await self._live(pod)
            self._collect_claims()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROBE_SECONDS):
                    await changed.wait()

    # --- The controller of StatefulSets -----------------------------------------------------------

    def _reconcile(self, body: Body) -> None:
        metadata, spec = body["metadata"], body["spec"]
        content = json.dumps(spec["template"], sort_keys=True).encode()
        revision = f"{metadata['name']}-{hashlib.sha1(content).hexdigest()[:10]}"
        pods = {
            pod["metadata"]["name"]: pod
            for pod in self.api.list("Pod", metadata["namespace"], spec["selector"]["matchLabels"])
        }
        seen = [str(metadata["generation"])]
        seen += [pod["metadata"]["resourceVersion"] for pod in pods.values()]
        if self._gave_up.get(metadata["uid"]) == seen:
            return  # it is told of claims by nobody, so it does not look again by itself
        for pod in pods.values():
            if not pod["metadata"].get("ownerReferences"):  # of a StatefulSet that was orphaned
                pod["metadata"]["ownerReferences"] = [_owner(body)]
        is_ordered = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
        wanted = [f"{metadata['name']}-{ordinal}" for ordinal in range(spec["replicas"])]
        for name in wanted:
            claim = self.api.get("PersistentVolumeClaim", f"data-{name}", metadata["namespace"])
            if name in pods:
                self._own_claim(claim, pods[name], owned=False)
            elif claim is not None and claim["metadata"].get("ownerReferences"):
                self._gave_up[metadata["uid"]] = seen  # it is of the pod before
            else:
                self._create_pod(body, claim, name, revision)
            if is_ordered and (name not in pods or not is_ready(pods[name])):
                break  # also what would replace it: kubernetes/kubernetes#67250
        else:
            for name in wanted:
                is_old = name in pods and _is_old(pods[name], revision)
                if is_old and spec["updateStrategy"]["type"] != "OnDelete":
                    self._terminate(pods[name])
        for name in set(pods) - set(wanted):
            policy = spec["persistentVolumeClaimRetentionPolicy"]["whenScaled"]
            claim = self.api.get("PersistentVolumeClaim", f"data-{name}", metadata["namespace"])
            self._own_claim(claim, pods[name], owned=policy == "Delete")
            self._terminate(pods[name])
        ready = sum(is_ready(pod) for pod in pods.values())
        status = {
            "observedGeneration": metadata["generation"],
            "replicas": len(pods),
            "readyReplicas": ready,
            "updateRevision": revision,
        }
        self.api.update("StatefulSet", {**body, "status": status}, status=True)

    def _own_claim(self, claim: Body | None, pod: Body, *, owned: bool) -> None:
        """Have the claim of a pod collected with it, or not."""
        if claim is None or bool(claim["metadata"].get("ownerReferences")) == owned:
            return
        owner = {key: pod["metadata"][key] for key in ("name", "uid")}
        claim["metadata"]["ownerReferences"] = [{"kind": "Pod", **owner}] if owned else []
        self.api.put("PersistentVolumeClaim", claim, verb="MODIFIED")

    def _create_pod(self, body: Body, claim: Body | None, name: str, revision: str) -> None:
        spec, namespace = body["spec"], body["metadata"]["namespace"]
        if claim is not None and "deletionTimestamp" in claim["metadata"]:
            return
        if claim is None:
            fresh = deepcopy(spec["volumeClaimTemplates"][0])
            fresh["metadata"] |= {"name": f"data-{name}", "namespace": namespace}
            fresh["status"] = {"phase": "Pending"}
            self.api.create("PersistentVolumeClaim", fresh)
        made = f"create Pod {name} in StatefulSet {body['metadata']['name']}"
        if self.quota is not None and len(self.api.list("Pod", namespace)) >= self.quota:
            error = f'pods "{name}" is forbidden: exceeded quota: few'
            self._tell(body, "FailedCreate", f"{made} failed error: {error}")
            return
        self._tell(body, "SuccessfulCreate", f"{made} successful")
        template = deepcopy(spec["template"])
        labels = {**template["metadata"]["labels"], "controller-revision-hash": revision}
        self.api.create(
            "Pod",
            {
                "metadata": {
                    "name": name,
                    "namespace": namespace,
                    "labels": labels,
                    "ownerReferences": [_owner(body)],
                },
                "spec": template["spec"],
                "status": {"phase": "Pending"},
            },
        )

    def _tell(self, body: Body, reason: str, message: str) -> None:
        """Leave an Event of a StatefulSet, the same at most once a second."""
        metadata = body["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        name = f"{metadata['name']}.{hashlib.sha1(message.encode()).hexdigest()[:16]}"
        known = self.api.get("Event", name, metadata["namespace"])
        if known is not None:
            if known["lastTimestamp"] != now:
                self.api.put("Event", {**known, "lastTimestamp": now}, verb="MODIFIED")
            return
        event = {
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {"kind": "StatefulSet", "uid": metadata["uid"]},
            "type": "Normal" if reason.startswith("Successful") else "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": now,
        }
        self.api.create("Event", event)

    def _terminate(self, body: Body) -> None:
        if "deletionTimestamp" not in body["metadata"]:
            body["metadata"]["deletionTimestamp"] = "2099-01-01T00:00:00Z"
            self.api.put(body["kind"], body, verb="MODIFIED")

    # --- Volumes ----------------------------------------------------------------------------------

    def _bind_claims(self) -> None:
        """A claim gets its volume as soon as its storage class exists."""
        for claim in self.api.list("PersistentVolumeClaim"):
            if claim["status"]["phase"] == "Pending" and self._missing_class(claim) is None:
                claim["status"] = {"phase": "Bound"}
            capacity = claim["spec"]["resources"]["requests"]
            status = {**claim["status"], "capacity": capacity}
            if status["phase"] == "Bound" and status != claim["status"]:
                claim["status"] = status
                self.api.put("PersistentVolumeClaim", claim, verb="MODIFIED")

    def _missing_class(self, claim: Body) -> str | None:
        wanted = claim["spec"].get("storageClassName")
        known = wanted in self.storage_classes or self.api.get("StorageClass", str(wanted), "")
        return None if wanted is None or known else str(wanted)

    def _collect_claims(self) -> None:
        """A claim is deleted some time after the pod that it belongs to is gone, and one that is
        being deleted goes when no pod uses it."""
        pods = {pod["metadata"]["uid"] for pod in self.api.list("Pod")}
        now = time.monotonic()
        for claim in self.api.list("PersistentVolumeClaim"):
            owners = {one["uid"] for one in claim["metadata"].get("ownerReferences") or []}
            if owners and not owners & pods:
                since = self._unowned_since.setdefault(claim["metadata"]["uid"], now)
                if now - since >= COLLECT_SECONDS:
                    self._terminate(claim)
            namespace, name = claim["metadata"]["namespace"], claim["metadata"]["name"]
            pod = self.api.get("Pod", name.removeprefix("data-"), namespace)
            if "deletionTimestamp" in claim["metadata"] and pod is None:
                self.api.delete("PersistentVolumeClaim", claim)
                shutil.rmtree(self._volume(claim), ignore_errors=True)

    # --- The kubelet ------------------------------------------------------------------------------

    async def _live(self, pod: Body) -> None:
        uid = pod["metadata"]["uid"]
        process = self.processes.get(uid)
        owners = {one["metadata"]["uid"] for one in self.api.list("StatefulSet")}
        references = pod["metadata"].get("ownerReferences") or []
        if references and references[0]["uid"] not in owners:
            self._terminate(pod)
        if "deletionTimestamp" in pod["metadata"]:
            if not pod["metadata"].get("ending"):
                pod["metadata"]["ending"] = True
                task = asyncio.create_task(self._end(pod, process))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
            return
        if not self._is_scheduled(pod):
            return
        if pod["spec"]["containers"][0]["image"] in self.broken_images:
            is_pulled = pod["spec"]["containers"][0]["imagePullPolicy"] != "Never"
            reason = "ImagePullBackOff" if is_pulled else "ErrImageNeverPull"
            waiting = {"reason": reason, "message": "no such image"}
            self._set_status(pod, ready=False, waiting=waiting)
            return
        if process is None or process.poll() is not None:
            self.processes[uid] = self._start(pod)
        self._set_status(pod, ready=await self._is_ready(pod))

    def _is_scheduled(self, pod: Body) -> bool:
        """Give the pod a machine and an address once its volume is there; say why not, if not."""
        if "podIP" in pod["status"]:
            return True
        metadata = pod["metadata"]
        claim = self.api.get(
            "PersistentVolumeClaim", f"data-{metadata['name']}", metadata["namespace"]
        )
        if claim is not None and claim["status"]["phase"] == "Bound":
            pod["spec"]["nodeName"] = "machine"
            pod["status"] = {"phase": "Pending", "podIP": self.address(metadata["name"])}
            return True
        message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims"
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
        }
        status = {"phase": "Pending", "conditions": [condition]}
        if pod["status"] != status:
            pod["status"] = status
            self.api.put("Pod", pod, verb="MODIFIED")
        return False

    async def _end(self, pod: Body, process: subprocess.Popen[bytes] | None) -> None:
        self._set_status(pod, ready=False)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_SECONDS):
                    while process.poll() is None:
                        await asyncio.sleep(0.02)
            process.kill()
            process.wait()
        self.processes.pop(pod["metadata"]["uid"], None)
        metadata = pod["metadata"]
        if self.api.get("Pod", metadata["name"], metadata["namespace"]) is not None:
            self.api.delete("Pod", pod)

    def _set_status(self, pod: Body, *, ready: bool, waiting: Body | None = None) -> None:
        status = {
            "phase": "Pending" if waiting else "Running",
            **({"podIP": pod["status"]["podIP"]} if "podIP" in pod["status"] else {}),
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"state": {"waiting": waiting} if waiting else {"running": {}}}],
        }
        if status != pod["status"] and self.api.get("Pod", pod["metadata"]["name"]) is pod:
            pod["status"] = status
            self.api.put("Pod", pod, verb="MODIFIED")

    async def _is_ready(self, pod: Body) -> bool:
        container = pod["spec"]["containers"][0]
        host = pod["status"]["podIP"]
        try:
            if container["name"] == "redis":
                _, writer = await asyncio.open_connection(host, 6379)
                writer.close()
                return True
            path = container["readinessProbe"]["httpGet"]["path"]
            async with self._session.get(f"http://{host}:8080{path}") as answer:
                return answer.status == 200
        except (OSError, TimeoutError, aiohttp.ClientError):
            return False

    def _start(self, pod: Body) -> subprocess.Popen[bytes]:
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]
        places = self._mount(pod)
        with (self.directory / f"{name}.log").open("ab") as log:
            if container["name"] == "redis":
                command = [default_server(), container["command"][1]]
                environment = dict(os.environ)
            else:
                command = [sys.executable, "-m", "distsync.command", *container["command"][1:]]
                environment = {**os.environ, **self._environment(pod, container)}
            return subprocess.Popen(
                [self._here(word, places) for word in command],
                env={key: self._here(value, places) for key, value in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _environment(self, pod: Body, container: Body) -> dict[str, str]:
        namespace = pod["metadata"]["namespace"]
        found: dict[str, str] = {}
        for source in container["envFrom"]:
            body = self.api.get("ConfigMap", source["configMapRef"]["name"], namespace)
            assert body is not None
            found |= body["data"]
        for one in container["env"]:
            value = one.get("value")
            if value is None:
                assert one["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
                value = pod["metadata"]["name"]
            for known, text in found.items():
                value = value.replace(f"$({known})", text)
            found[one["name"]] = self._resolved(value, pod)
        return {**found, "DISTSYNC_HOST": pod["status"]["podIP"], "DISTSYNC_DRAIN": "300ms"}

    def _resolved(self, text: str, pod: Body) -> str:
        """Put addresses in the place of the names that DNS would resolve."""
        namespace = pod["metadata"]["namespace"]
        cluster = pod["metadata"]["labels"]["distsync.dev/cluster"]
        for ordinal in range(9):
            name = f"{cluster}-{ordinal}"
            text = text.replace(f"{name}.{cluster}-nodes.{namespace}.svc", self.address(name))
        redis = f"{cluster}-redis"
        return text.replace(f"{redis}.{namespace}.svc", self.address(f"{redis}-0"))

    def _mount(self, pod: Body) -> dict[str, Path]:
        """Lay out the volumes of a pod; return where each path of the container is here."""
        namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        root = self.directory / "pods" / pod["metadata"]["uid"]
        claim = self.api.get("PersistentVolumeClaim", f"data-{name}", namespace)
        assert claim is not None
        volumes: dict[str, Path] = {"data": self._volume(claim)}
        for volume in pod["spec"]["volumes"]:
            where = volumes[volume["name"]] = root / volume["name"]
            where.mkdir(parents=True, exist_ok=True)
            for key, text in self._files(volume, namespace).items():
                (where / key).write_text(self._resolved(text, pod))
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        places = {mount["mountPath"]: volumes[mount["name"]] for mount in mounts}
        for config in root.rglob("redis.conf"):
            text = config.read_text().replace("bind * -::*", f"bind {pod['status']['podIP']}")
            config.write_text(self._here(text, places))
        return places

    def _files(self, volume: Body, namespace: str) -> dict[str, str]:
        if "configMap" in volume:
            body = self.api.get("ConfigMap", volume["configMap"]["name"], namespace)
            return dict(body["data"]) if body else {}
        if "secret" not in volume:
            return {}
        body = self.api.get("Secret", volume["secret"]["secretName"], namespace)
        assert body is not None
        data = {key: b64decode(value).decode() for key, value in body["data"].items()}
        items = volume["secret"].get("items")
        return {one["path"]: data[one["key"]] for one in items} if items else data

    def _volume(self, claim: Body) -> Path:
        where = self.directory / "volumes" / claim["metadata"]["uid"]
        where.mkdir(parents=True, exist_ok=True)
        return where

    @staticmethod
    def _here(text: str, places: dict[str, Path]) -> str:
        for path, where in sorted(places.items(), key=lambda item: -len(item[0])):
            if path != "/tmp":
                text = text.replace(path, str(where))
        return text


def _owner(body: Body) -> dict[str, Any]:
    metadata = body["metadata"]
    return {"kind": "StatefulSet", "name": metadata["name"], "uid": metadata["uid"]}


def _is_old(pod: Body, revision: str) -> bool:
    return bool(pod["metadata"]["labels"]["controller-revision-hash"] != revision)
