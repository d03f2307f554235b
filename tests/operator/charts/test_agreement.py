"""The definition, the chart and the operator speak of the same things."""

from __future__ import annotations

from typing import Any

import click
import msgspec
import pytest

from crd_rules import defaulted, root_schema
from distsync.command.node import node
from distsync_operator import names
from distsync_operator.handlers import OWNED
from distsync_operator.kube import KINDS
from distsync_operator.plan.objects import known_names
from distsync_operator.resources.config import config_map
from distsync_operator.resources.network import nodes_policy
from distsync_operator.resources.redis import redis_stateful_set
from distsync_operator.resources.statefulset import stateful_set
from distsync_operator.spec import Manifest, Spec, read_cluster
from kube.rights import rights_of
from kube.samples import DEFAULTS, cluster
from kubernetes_charts import by_kind, render, strictly_valid


def plural_of(kind: str) -> str:
    return KINDS[kind][1]


def test_the_operator_fills_in_what_the_definition_fills_in() -> None:
    written = defaulted({"metadata": {"name": "a"}}, root_schema())["spec"]
    assert msgspec.convert(written, Spec) == Spec()


def test_the_operator_reads_every_field_of_the_spec() -> None:
    def unread(schema: Manifest, struct: type[msgspec.Struct], path: str) -> list[str]:
        known = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        found = [f"{path}.{name}" for name in schema["properties"] if name not in known]
        for name, inner in schema["properties"].items():
            for one in getattr(known.get(name), "__args__", (known.get(name),)):
                if isinstance(one, type) and issubclass(one, msgspec.Struct):
                    found += unread(inner, one, f"{path}.{name}")
        return found

    assert unread(root_schema()["properties"]["spec"], Spec, "spec") == []


def test_names_are_those_of_the_definition() -> None:
    (definition,) = by_kind(render("distsync", {}), "CustomResourceDefinition")
    assert definition["spec"]["group"] == names.GROUP
    assert definition["spec"]["names"]["kind"] == names.KIND
    assert definition["spec"]["names"]["plural"] == names.PLURAL
    assert [one["name"] for one in definition["spec"]["versions"]] == [names.VERSION]


WATCHED = {(plural, verb) for _, _, plural in OWNED for verb in ("list", "watch")}
APPLIED = {
    (plural_of(kind), verb)
    for kind, _ in known_names(cluster())
    for verb in ("get", "list", "create", "patch")  # server-side apply creates what is not there
}
OF_CLUSTERS = (
    WATCHED
    | APPLIED
    | {("poddisruptionbudgets", "delete"), ("networkpolicies", "delete")}  # can be switched off
    | {("statefulsets", "delete"), ("persistentvolumeclaims", "patch")}  # volumes grow
    | {("pods", "delete"), ("persistentvolumeclaims", "delete")}  # are replaced
    | {(names.PLURAL, verb) for verb in ("get", "list", "watch", "patch")}
    | {(f"{names.PLURAL}/status", "patch"), (f"{names.PLURAL}/finalizers", "update")}
    | {("events", "create"), ("events", "list")}
)
LEASE = {("leases", "create"), ("leases", "get"), ("leases", "update")}
EVERYWHERE = {("nodes", "get")} | {
    ("customresourcedefinitions", verb) for verb in ("list", "watch")
}


@pytest.mark.parametrize(
    ("namespaces", "more"), [([], EVERYWHERE), (["team-a"], set())], ids=["cluster", "namespaces"]
)
def test_the_operator_may_do_what_it_does_and_nothing_else(
    namespaces: list[str], more: set[tuple[str, str]]
) -> None:
    rights = rights_of(render("distsync", {"watch": {"namespaces": namespaces}}))
    assert rights.verbs() == OF_CLUSTERS | LEASE | more


def test_the_policy_of_nodes_lets_the_operator_of_the_chart_in() -> None:
    (deployment,) = by_kind(render("distsync", {}), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    peers = [
        peer
        for rule in nodes_policy(cluster(), DEFAULTS)["spec"]["ingress"]
        for peer in rule.get("from", [])
    ]
    assert any(
        "namespaceSelector" in peer and peer["podSelector"]["matchLabels"].items() <= labels.items()
        for peer in peers
    )


@pytest.mark.parametrize("name", ["", "demo"])
def test_a_policy_with_clients_lets_the_test_of_the_chart_in(name: str) -> None:
    documents = render("distsync-cluster", {"name": name})
    (pod,), (resource,) = by_kind(documents, "Pod"), by_kind(documents, "DistSyncCluster")
    shop = {"podSelector": {"matchLabels": {"app": "shop"}}}
    written = {"networkPolicy": {"clients": [shop]}}
    metadata = {**resource["metadata"], "uid": "u"}
    policy = nodes_policy(read_cluster({"metadata": metadata, "spec": written}), DEFAULTS)
    peers = policy["spec"]["ingress"][0]["from"]
    labels = pod["metadata"]["labels"].items()
    assert any(
        "namespaceSelector" not in peer and peer["podSelector"]["matchLabels"].items() <= labels
        for peer in peers
    )


@pytest.mark.parametrize(
    ("durability", "option"),
    [("Mirrored", "mirrored"), ("Local", "local"), ("WriteThrough", "write_through")],
)
def test_nodes_take_the_options_that_the_resource_decides(durability: str, option: str) -> None:
    data = config_map(cluster(cache={"durability": durability, "maxBytes": 1_048_576}))["data"]
    assert data["DISTSYNC_CACHE_DURABILITY"] == option
    options = {f"DISTSYNC_{(one.name or '').upper()}": one for one in node.params}
    context = click.Context(node)
    for name, value in data.items():
        options[name].type_cast_value(context, value)


def test_secrets_for_pulling_hold_for_redis_too() -> None:
    resource = cluster(podTemplate={"imagePullSecrets": [{"name": "mirror"}]})
    redis = resource.spec.redis.managed
    assert redis is not None
    sets: list[dict[str, Any]] = [
        stateful_set(resource, DEFAULTS, replicas=3, redis_hash="h"),
        redis_stateful_set(resource, redis, DEFAULTS, redis_hash="h"),
    ]
    for one in sets:
        strictly_valid(one)
        assert one["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "mirror"}]
