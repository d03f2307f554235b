"""An API server in this process: versions, selectors, watches, server-side apply, status, rights.

It keeps objects as JSON and does what the operator and kopf rely on: a stale `resourceVersion` is
409, a write that changes nothing gives no new version, `status` is written by its own path only,
a deleted owner takes what it owns along, a watch goes on from the version that it names or, if
that is too old, ends with 410. Who comes by HTTP has the `rights` that were given; what they do not
allow is 403. kubectl may do everything. `writes` and `reads` count what came by HTTP, by method or
verb and kind.
"""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from base64 import b64encode
from collections import Counter, deque
from collections.abc import Callable
from contextvars import ContextVar
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from distsync_operator.kube import KINDS as OPERATOR_KINDS
from kube.rights import Request, Rights

Body = dict[str, Any]
Key = tuple[str, str, str]  # kind, namespace, name
KINDS = {
    **OPERATOR_KINDS,  # and what kopf looks at:
    "Namespace": ("v1", "namespaces", False),
    "StorageClass": ("storage.k8s.io/v1", "storageclasses", False),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions", False),
}
_PLURALS = {
    (version, plural): (kind, in_namespace)
    for kind, (version, plural, in_namespace) in KINDS.items()
}

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
# It sends no token without TLS, so that it is known by its name alone.
_by_kubectl: ContextVar[bool] = ContextVar("_by_kubectl", default=False)
_HISTORY = 5_000  # events that a watch can go back
_OF_OBJECTS = ("ADDED", "MODIFIED", "DELETED")
_OF_KUBELET = ("Pod", "PersistentVolumeClaim")  # its double ends them


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.status, self.reason = status, reason


class ApiDouble:
    """The store and its HTTP server; an async context manager."""

    def __init__(self, rights: Rights | None = None) -> None:
        self.objects: dict[Key, Body] = {}
        self.writes: Counter[tuple[str, str]] = Counter()
        self.reads: Counter[tuple[str, str]] = Counter()
        self.rights = rights
        self.used: set[tuple[str, str]] = set()  # resources and verbs that rights allowed
        self.refused: list[str] = []  # what they did not
        self.fixed_classes: set[str] = set()  # storage classes whose volumes cannot grow
        self.url = ""
        self.unserved = {"ServiceMonitor"}  # kinds that it does not have
        self.admission: Callable[[str, Body], None] | None = None  # changes what is written
        self._version = 1_000
        self._oldest = 0  # a watch from before this is gone
        self._history: deque[tuple[int, str, Body]] = deque()
        self._applied: dict[Key, Body] = {}
        self._watchers: list[tuple[str, str, dict[str, str], asyncio.Queue[Body | None]]] = []
        self._changed: list[asyncio.Event] = []

    # --- The store ------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str = "apps") -> Body | None:
        """Return an object."""
        return self.objects.get((kind, namespace, name))

    def list(
        self, kind: str, namespace: str = "", labels: dict[str, str] | None = None
    ) -> list[Body]:
        """Return the objects of a kind with these labels."""
        wanted = labels or {}
        found = [
            key
            for key, body in self.objects.items()
            if key[0] == kind and namespace in ("", key[1]) and _has(body, wanted)
        ]
        return [self.objects[key] for key in sorted(found)]

    def put(self, kind: str, body: Body, *, verb: str = "ADDED") -> Body:
        """Store an object under a new version and tell watchers."""
        metadata = body["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        self._version += 1
        metadata["resourceVersion"] = str(self._version)
        body["kind"], body["apiVersion"] = kind, KINDS[kind][0]
        if verb == "DELETED":
            self.objects.pop(key, None)
            self._applied.pop(key, None)
        else:
            self.objects[key] = body
        event = {"type": verb, "object": deepcopy(body)}
        self._history.append((self._version, kind, event))
        if len(self._history) > _HISTORY:
            self._oldest, _, _ = self._history.popleft()
        for one, namespace, labels, queue in self._watchers:
            if one == kind and namespace in ("", key[1]) and _has(body, labels):
                queue.put_nowait(event)
        for changed in self._changed:
            changed.set()
        return body

    def cut_watches(self) -> None:
        """End all watches, as a server does that is restarted."""
        for _, _, _, queue in self._watchers:
            queue.put_nowait(None)
        self._watchers.clear()

    def forget_history(self) -> None:
        """No watch can go on from what was before: 410."""
        self._oldest = self._version
        self._history.clear()

    def create(self, kind: str, body: Body) -> Body:
        """Create an object."""
        metadata = body["metadata"]
        if (kind, metadata.get("namespace", ""), metadata["name"]) in self.objects:
            raise Refused(409, "AlreadyExists")
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["generation"] = 1
        if kind == "DistSyncCluster":
            body.pop("status", None)
        for key, text in body.pop("stringData", {}).items():
            body.setdefault("data", {})[key] = b64encode(text.encode()).decode()
        if self.admission is not None:
            self.admission(kind, body)
        created = self.put(kind, body)
        owners = {one["uid"] for one in metadata.get("ownerReferences") or []}
        known = {one["metadata"]["uid"] for one in self.objects.values()}
        if owners and not owners & known and kind not in _OF_KUBELET:
            # Whose owner is gone already is collected a moment later.
            asyncio.get_running_loop().call_soon(self.delete, kind, created)
        return created

    def update(self, kind: str, body: Body, *, status: bool = False) -> Body:
        """Replace an object, or only its status; the same again gives no new version."""
        metadata = body["metadata"]
        key = (kind, metadata.get("namespace", ""), metadata["name"])
        before = self.objects.get(key)
        if before is None:
            raise Refused(404, "NotFound")
        version = metadata.get("resourceVersion")
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise Refused(409, "Conflict")
        if metadata.get("uid", before["metadata"]["uid"]) != before["metadata"]["uid"]:
            raise Refused(409, "Conflict")
        if kind == "PersistentVolumeClaim" and body["spec"] != before["spec"]:
            self._check_growth(before)
        after = {**before, "status": body.get("status")} if status else deepcopy(body)
        if not status and "status" in before and kind in ("DistSyncCluster", "StatefulSet"):
            after["status"] = before["status"]
        if self.admission is not None and not status:
            self.admission(kind, after)
        changed = after.get("spec") != before.get("spec")
        system = {
            name: before["metadata"][name]
            for name in ("uid", "creationTimestamp", "resourceVersion", "generation")
        }
        after["metadata"] = {**after["metadata"], **system}
        if after == before:
            return before
        after["metadata"]["generation"] += changed
        return self.put(kind, after, verb="MODIFIED")

    def _check_growth(self, claim: Body) -> None:
        """What the admission of PersistentVolumeClaimResize lets through."""
        if claim["status"]["phase"] != "Bound":
            raise Refused(403, "Forbidden", "Only bound persistent volume claims can be expanded")
        if claim["spec"].get("storageClassName") in self.fixed_classes:
            message = (
                "Only dynamically provisioned pvc can be resized and the storageclass that"
                " provisions the pvc must support resize"
            )
            raise Refused(403, "Forbidden", message)

    def apply(self, kind: str, body: Body) -> Body:
        """Merge a manifest; what the same manager applied before and does not now, goes."""
        metadata = body["metadata"]
        key = (kind, metadata["namespace"], metadata["name"])
        before = self.objects.get(key)
        last = self._applied.get(key, {})
        self._applied[key] = deepcopy(body)
        if before is None:
            return self.create(kind, deepcopy(body))
        merged = _merge(_without(deepcopy(before), last, body), body)
        if kind == "StatefulSet":
            for field in ("serviceName", "selector", "volumeClaimTemplates"):
                if merged["spec"][field] != before["spec"][field]:
                    raise Refused(422, "Invalid", f"spec.{field} cannot be changed")
        return self.update(kind, merged)

    def delete(self, kind: str, body: Body, *, orphan: bool = False) -> None:
        """Take an object away, and what it owns."""
        self.put(kind, body, verb="DELETED")
        uid = body["metadata"]["uid"]
        for (other, _, _), owned in list(self.objects.items()):
            references = owned["metadata"].get("ownerReferences") or []
            if not any(one["uid"] == uid for one in references):
                continue
            if orphan:
                owned["metadata"]["ownerReferences"] = []
            elif other not in _OF_KUBELET:
                self.delete(other, owned)

    def watch_changes(self) -> asyncio.Event:
        """Return an event that is set whenever anything changes."""
        event = asyncio.Event()
        self._changed.append(event)
        return event

    # --- HTTP -----------------------------------------------------------------------------------

    async def __aenter__(self) -> ApiDouble:
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def kubeconfig(self) -> str:
        """Return a configuration that leads here."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "double",
                "contexts": [{"name": "double", "context": {"cluster": "double", "user": "u"}}],
                "clusters": [{"name": "double", "cluster": {"server": self.url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        _by_kubectl.set(request.headers.get("User-Agent", "").startswith("kubectl"))
        try:
            return await self._route(request)
        except Refused as error:
            body = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "code": error.status,
                "reason": error.reason,
                "message": str(error),
            }
            return web.json_response(body, status=error.status)

    async def _route(self, request: web.Request) -> web.StreamResponse:
        parts = [part for part in request.path.split("/") if part]
        discovered = _discovery(parts, self.unserved)
        if discovered is not None:
            return web.json_response(discovered)
        version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        if not rest or (version, rest[0]) not in _PLURALS:
            raise Refused(404, "NotFound", request.path)
        kind, _ = _PLURALS[version, rest[0]]
        if kind in self.unserved:
            raise Refused(404, "NotFound", request.path)
        name = rest[1] if len(rest) > 1 else ""
        is_status = rest[2:] == ["status"]
        if request.method == "GET":
            listing = "watch" if request.query.get("watch") == "true" else "list"
            verb = "get" if name else listing
            self._authorize(verb, kind, namespace, name)
            self.reads[verb, kind] += 1
            return await self._read(request, kind, namespace, name)
        if rest[2:] == ["eviction"]:
            self._authorize("create", kind, namespace, name, "/eviction")
            return web.json_response(self._evict(namespace, name))
        subresource = "/status" if is_status else ""
        self._authorize(_VERBS[request.method], kind, namespace, name, subresource)
        self.writes[f"{request.method}{'/status' if is_status else ''}", kind] += 1
        content = await request.text()
        body = json.loads(content) if content else {}
        return web.json_response(
            self._write(request, kind, namespace, name, body, is_status=is_status)
        )

    def _authorize(
        self, verb: str, kind: str, namespace: str, name: str, subresource: str = ""
    ) -> None:
        version, plural, _ = KINDS[kind]
        group = version.rpartition("/")[0]
        asked = Request(
            verb=verb,
            group=group,
            resource=plural + subresource,
            namespace=namespace,
            name="" if verb == "create" else name,  # the name of what is not there is not known
        )
        if self.rights is None or _by_kubectl.get():
            return
        if not self.rights.allow(asked):
            self.refused.append(str(asked))
            raise Refused(403, "Forbidden", f"may not {asked}")
        self.used.add((asked.resource, verb))

    def _authorize_owners(self, body: Body, namespace: str) -> None:
        """What the admission of OwnerReferencesPermissionEnforcement asks for."""
        for owner in body["metadata"].get("ownerReferences") or []:
            if owner.get("blockOwnerDeletion"):
                self._authorize("update", owner["kind"], namespace, owner["name"], "/finalizers")

    async def _read(
        self, request: web.Request, kind: str, namespace: str, name: str
    ) -> web.StreamResponse:
        if name:
            body = self.objects.get((kind, namespace, name))
            if body is None:
                raise Refused(404, "NotFound", f"{kind} {name}")
            return web.json_response(body)
        labels = _selected(request, "labelSelector")
        fields = _selected(request, "fieldSelector")
        if request.query.get("watch") == "true":
            return await self._watch(request, kind, namespace, labels, fields)
        return web.json_response(
            {
                "kind": f"{kind}List",
                "apiVersion": KINDS[kind][0],
                "metadata": {"resourceVersion": str(self._version)},
                "items": [
                    body for body in self.list(kind, namespace, labels) if _is_at(body, fields)
                ],
            }
        )

    def _write(
        self,
        request: web.Request,
        kind: str,
        namespace: str,
        name: str,
        body: Body,
        *,
        is_status: bool,
    ) -> Body:
        known = self.objects.get((kind, namespace, name))
        if request.method != "DELETE" and "metadata" in body and not is_status:
            self._authorize_owners(body, namespace)
        if request.method == "POST":
            return self.create(kind, body)
        if request.method == "PUT":
            return self.update(kind, body, status=is_status)
        if request.method == "PATCH" and "apply" in request.content_type:
            if known is None:
                self._authorize("create", kind, namespace, name)
            return self.apply(kind, body)
        if known is None:
            raise Refused(404, "NotFound", f"{kind} {name}")
        if request.method == "PATCH":
            return self.update(kind, _merge_patch(deepcopy(known), body), status=is_status)
        uid = (body.get("preconditions") or {}).get("uid")
        if uid not in (None, known["metadata"]["uid"]):
            raise Refused(409, "Conflict")
        if kind in ("Pod", "PersistentVolumeClaim") and body.get("gracePeriodSeconds") != 0:
            return self._end(known)
        self.delete(kind, known, orphan=body.get("propagationPolicy") == "Orphan")
        return {"kind": "Status", "status": "Success"}

    def _evict(self, namespace: str, name: str) -> Body:
        """Delete a pod in good order, unless a budget of its StatefulSet is used up."""
        pod = self.objects.get(("Pod", namespace, name))
        if pod is None:
            raise Refused(404, "NotFound", f"Pod {name}")
        for budget in self.list("PodDisruptionBudget", namespace):
            pods = self.list("Pod", namespace, budget["spec"]["selector"]["matchLabels"])
            owner = self.get("StatefulSet", budget["metadata"]["name"], namespace)
            if pod not in pods or owner is None:
                continue
            healthy = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
            healthy = [one for one in healthy if is_ready(one)]
            if len(healthy) <= owner["spec"]["replicas"] - budget["spec"]["maxUnavailable"]:
                message = "Cannot evict pod as it would violate the pod's disruption budget."
                raise Refused(429, "TooManyRequests", message)
        self._end(pod)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _end(self, body: Body) -> Body:
        """Say that a pod or a claim is to end; the kubelet's double ends it."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        body["metadata"].setdefault("deletionTimestamp", now)
        return self.put(body["kind"], body, verb="MODIFIED")

    async def _watch(
        self,
        request: web.Request,
        kind: str,
        namespace: str,
        labels: dict[str, str],
        fields: dict[str, str],
    ) -> web.StreamResponse:
        queue: asyncio.Queue[Body | None] = asyncio.Queue()
        self._replay(queue, kind, namespace, labels, request.query.get("resourceVersion"))
        watcher = (kind, namespace, labels, queue)
        self._watchers.append(watcher)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        await response.prepare(request)
        try:
            while True:
                try:
                    async with asyncio.timeout(20):
                        event = await queue.get()
                except TimeoutError:
                    version = {"resourceVersion": str(self._version)}
                    event = {"type": "BOOKMARK", "object": {"kind": kind, "metadata": version}}
                if event is None:
                    break
                if event["type"] in _OF_OBJECTS and not _is_at(event["object"], fields):
                    continue
                await response.write(json.dumps(event).encode() + b"\n")
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
        return response

    def _replay(
        self,
        queue: asyncio.Queue[Body | None],
        kind: str,
        namespace: str,
        labels: dict[str, str],
        since: str | None,
    ) -> None:
        """Tell what happened since a version; if that is not known any more, say so and end."""
        if since is None:
            for body in self.list(kind, namespace, labels):
                queue.put_nowait({"type": "ADDED", "object": deepcopy(body)})
            return
        if int(since) < self._oldest:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "status": "Failure"}
            queue.put_nowait({"type": "ERROR", "object": gone})
            queue.put_nowait(None)
            return
        for version, one, event in self._history:
            metadata = event["object"]["metadata"]
            is_there = namespace in ("", metadata.get("namespace", ""))
            if version > int(since) and one == kind and is_there and _has(event["object"], labels):
                queue.put_nowait(event)


def _discovery(parts: list[str], unserved: set[str]) -> Body | None:
    groups = sorted({version for version, _, _ in KINDS.values() if "/" in version})
    if parts == ["version"]:
        return {"major": "1", "minor": "36", "gitVersion": "v1.36.0"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        entries = []
        for version in groups:
            one = {"groupVersion": version, "version": version.split("/")[1]}
            entries.append(
                {"name": version.split("/")[0], "versions": [one], "preferredVersion": one}
            )
        return {"kind": "APIGroupList", "groups": entries}
    version = parts[1] if parts[0] == "api" else "/".join(parts[1:])
    if len(parts) != (2 if parts[0] == "api" else 3) or version not in {"v1", *groups}:
        return None
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "kind": kind,
            "namespaced": in_namespace,
            "verbs": ["get", "list", "watch", "create", "patch", "update", "delete"],
        }
        for kind, (one, plural, in_namespace) in KINDS.items()
        if one == version and kind not in unserved
    ]
    return {"kind": "APIResourceList", "groupVersion": version, "resources": resources}


def _selected(request: web.Request, kind: str) -> dict[str, str]:
    selector = request.query.get(kind, "")
    return dict(pair.split("=", 1) for pair in selector.split(",") if pair)


def _is_at(body: Body, fields: dict[str, str]) -> bool:
    """Whether each path leads to its value."""
    return all(
        functools.reduce(lambda part, key: part.get(key, {}), path.split("."), body) == value
        for path, value in fields.items()
    )


def is_ready(pod: Body) -> bool:
    """Whether a pod says that it is ready."""
    conditions = pod["status"].get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _has(body: Body, labels: dict[str, str]) -> bool:
    return labels.items() <= (body["metadata"].get("labels") or {}).items()


def _merge(live: Any, wanted: Any) -> Any:
    """Server-side apply: maps are merged, lists are replaced."""
    if not isinstance(live, dict) or not isinstance(wanted, dict):
        return deepcopy(wanted)
    return {**live, **{key: _merge(live.get(key), value) for key, value in wanted.items()}}


def _without(live: Any, last: Any, wanted: Any) -> Any:
    """Take away what was applied last time and is not wanted any more."""
    if not all(isinstance(one, dict) for one in (live, last, wanted)):
        return live
    for key in last:
        if key not in wanted:
            live.pop(key, None)
        elif key in live:
            live[key] = _without(live[key], last[key], wanted[key])
    return live


def _merge_patch(live: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    result = dict(live) if isinstance(live, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_patch(result.get(key), value)
    return result
