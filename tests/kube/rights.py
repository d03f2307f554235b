"""What the account of the operator may do, read from what the chart renders.

As the RBAC authorizer of Kubernetes: a rule counts where a binding leads from the account to its
role; a Role counts in its own namespace, a ClusterRole by a ClusterRoleBinding everywhere. There is
no wildcard here because the chart has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks of the API server; `resource` may be `plural/subresource`."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}.{self.group} {self.name}{where}"


@dataclass(frozen=True, slots=True)
class Rights:
    """Rules with the namespace in which each counts; '' is everywhere."""

    rules: tuple[tuple[str, Manifest], ...]

    def allow(self, request: Request) -> bool:
        """Whether some rule allows it."""
        return any(
            namespace in ("", request.namespace) and _covers(rule, request)
            for namespace, rule in self.rules
        )

    def verbs(self) -> set[tuple[str, str]]:
        """Return each resource with each verb that some rule allows on it."""
        return {
            (resource, verb)
            for _, rule in self.rules
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }


def rights_of(documents: list[Manifest]) -> Rights:
    """Return the rights of the account that the only Deployment among these runs as."""
    (deployment,) = (one for one in documents if one["kind"] == "Deployment")
    account = {
        "kind": "ServiceAccount",
        "name": deployment["spec"]["template"]["spec"]["serviceAccountName"],
        "namespace": deployment["metadata"]["namespace"],
    }
    return Rights(tuple(_bound(documents, account)))


def _bound(documents: list[Manifest], account: Manifest) -> Iterator[tuple[str, Manifest]]:
    roles = {(one["kind"], _namespace(one), one["metadata"]["name"]): one for one in documents}
    for binding in documents:
        if binding["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            where, named = _namespace(binding), binding["roleRef"]
            place = where if named["kind"] == "Role" else ""
            if account in binding["subjects"]:
                role = roles[named["kind"], place, named["name"]]
                yield from ((where, rule) for rule in role["rules"])


def _namespace(document: Manifest) -> str:
    return str(document["metadata"].get("namespace", ""))


def _covers(rule: Manifest, request: Request) -> bool:
    names = rule.get("resourceNames")
    return (
        request.verb in rule["verbs"]
        and request.group in rule["apiGroups"]
        and request.resource in rule["resources"]
        and (names is None or request.name in names)
    )
