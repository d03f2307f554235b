"""The API server, as much of it as the operator needs, through the official client.

Objects are plain JSON: what is not modelled is passed on. Server-side apply makes an object what a
manifest says and leaves fields of others alone; repeating it changes nothing, not even a version.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient

from distsync_operator import names
from distsync_operator.errors import KubeError
from distsync_operator.spec import Manifest

AT_ONCE = 16
_TIMEOUT_SECONDS = 20
_JSON = "application/json"

# Kind -> group and version, plural, whether it is in a namespace.
KINDS: Mapping[str, tuple[str, str, bool]] = {
    "ConfigMap": ("v1", "configmaps", True),
    "Event": ("v1", "events", True),
    "Node": ("v1", "nodes", False),
    "PersistentVolumeClaim": ("v1", "persistentvolumeclaims", True),
    "Pod": ("v1", "pods", True),
    "Secret": ("v1", "secrets", True),
    "Service": ("v1", "services", True),
    "StatefulSet": ("apps/v1", "statefulsets", True),
    "Lease": ("coordination.k8s.io/v1", "leases", True),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies", True),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets", True),
    "ServiceMonitor": ("monitoring.coreos.com/v1", "servicemonitors", True),
    names.KIND: (f"{names.GROUP}/{names.VERSION}", names.PLURAL, True),
}


class Kube:
    """Calls to the API server; one that fails raises KubeError."""

    def __init__(self, client: ApiClient) -> None:
        """Take over a configured client, without closing it.

        Only so many calls are made at once: those of many workers that begin together would wait
        for each other at the server until they time out. What must not wait has a Kube of its own.
        """
        self._client = client
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """Return an object, None if it does not exist."""
        try:
            return await self._call("GET", _path(kind, namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def list(
        self,
        kind: str,
        namespace: str,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[Manifest] | None:
        """Return the objects with these labels and fields, None if there is no such kind."""
        query = {"labelSelector": _selector(labels), "fieldSelector": _selector(fields)}
        try:
            answer = await self._call("GET", _path(kind, namespace), query=query)
        except KubeError as error:
            if error.status == 404:
                return None
            raise
        # A list names version and kind of its items once, in front of them.
        named = {"apiVersion": KINDS[kind][0], "kind": kind}
        return [{**item, **named} for item in answer.get("items") or []]

    async def create(self, namespace: str, manifest: Manifest) -> Manifest:
        """Create an object."""
        return await self._call("POST", _path(manifest["kind"], namespace), body=manifest)

    async def replace(self, namespace: str, manifest: Manifest) -> Manifest:
        """Replace an object if it still has the `resourceVersion` of the manifest."""
        name = manifest["metadata"]["name"]
        return await self._call("PUT", _path(manifest["kind"], namespace, name), body=manifest)

    async def apply(self, manifest: Manifest) -> Manifest:
        """Make an object what the manifest says; whatever else was said of these fields loses."""
        metadata = manifest["metadata"]
        return await self._call(
            "PATCH",
            _path(manifest["kind"], metadata["namespace"], metadata["name"]),
            query={"fieldManager": names.MANAGER, "force": "true"},
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    async def patch(
        self, kind: str, namespace: str, name: str, change: Manifest, *, subresource: str = ""
    ) -> Manifest:
        """Merge a change into an object (RFC 7386)."""
        return await self._call(
            "PATCH",
            _path(kind, namespace, name, subresource),
            body=change,
            content_type="application/merge-patch+json",
        )

    async def delete(
        self, kind: str, namespace: str, name: str, *, uid: str, orphan: bool, force: bool
    ) -> None:
        """Delete an object if it still is the one of this uid; gone already is fine."""
        options: Manifest = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Orphan" if orphan else "Background",
            **({"gracePeriodSeconds": 0} if force else {}),
        }
        try:
            await self._call("DELETE", _path(kind, namespace, name), body=options)
        except KubeError as error:
            if error.status not in (404, 409):
                raise

    async def serves(self, group_version: str, plural: str) -> bool:
        """Whether the API server has a resource."""
        try:
            answer = await self._call("GET", f"/apis/{group_version}")
        except KubeError as error:
            if error.status in (403, 404):
                return False
            raise
        return any(one["name"] == plural for one in answer.get("resources") or [])

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        content_type: str = _JSON,
    ) -> Manifest:
        headers = {"Accept": _JSON, "Content-Type": content_type}
        prepared = await self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        method, url, headers, content_out, _ = prepared
        if query:
            url = f"{url}?{urlencode(query)}"
        try:
            async with self._slots:
                response = await self._client.call_api(
                    method, url, headers, content_out, _request_timeout=_TIMEOUT_SECONDS
                )
                content: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = str(error) or type(error).__name__
            raise KubeError(
                0, "Unreachable", f"the API server does not answer: {message}"
            ) from None
        answer = _decoded(content)
        if not 200 <= response.status < 300:
            raise KubeError(
                response.status, str(answer.get("reason", "")), str(answer.get("message", ""))
            )
        return answer


def _decoded(content: bytes) -> Manifest:
    try:
        answer: Any = json.loads(content or b"{}")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _selector(wanted: Mapping[str, str] | None) -> str:
    return ",".join(f"{key}={value}" for key, value in (wanted or {}).items())


def _path(kind: str, namespace: str, name: str = "", subresource: str = "") -> str:
    version, plural, is_namespaced = KINDS[kind]
    root = "/api" if "/" not in version else "/apis"
    parts = [root, version, *(["namespaces", namespace] if is_namespaced else []), plural]
    return "/".join([*parts, *(part for part in (name, subresource) if part)])
