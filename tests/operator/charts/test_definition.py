"""The definition `distsyncclusters.distsync.dev`: its shape, and what it lets through.

It was also judged once by the code of Kubernetes 1.36 itself: see docs/decisions.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from crd_rules import broken_rules, defaulted, errors_of, root_schema
from kubernetes_charts import crd, strictly_valid, version_of_crd

Manifest = dict[str, Any]

MAX_STRING_LENGTH = 32_768
# What `kubectl apply` without --server-side can keep in an annotation.
MAX_ANNOTATION_BYTES = 262_144


def cluster(name: str = "locks", /, **spec: Any) -> Manifest:
    return {
        "apiVersion": "distsync.dev/v1alpha1",
        "kind": "DistSyncCluster",
        "metadata": {"name": name},
        "spec": spec,
    }


def fields(schema: Manifest, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every field below a schema, list items and map values among them."""
    inner = dict(schema.get("properties", {}))
    if "items" in schema:
        inner["[]"] = schema["items"]
    if isinstance(schema.get("additionalProperties"), dict):
        inner["*"] = schema["additionalProperties"]
    for name, field in inner.items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")


ALL = [one for one in fields(root_schema()) if one[0] not in (".metadata",)]

# --- Its shape ----------------------------------------------------------------------------------


def test_it_is_a_valid_definition() -> None:
    strictly_valid(crd())


def test_every_field_is_described() -> None:
    described = [path for path, field in ALL if not path.endswith("*")]
    missing = [path for path, field in ALL if path in described and not field.get("description")]
    assert missing == []


def test_strings_and_lists_and_maps_are_bounded() -> None:
    for path, field in ALL:
        if path in (".apiVersion", ".kind"):
            continue
        kind = field.get("type")
        if kind == "string" and field.get("format") != "date-time" and "enum" not in field:
            assert 0 < field["maxLength"] <= MAX_STRING_LENGTH, path
        if kind == "array":
            assert 0 < field["maxItems"] <= 64, path
            assert field["x-kubernetes-list-type"] in ("atomic", "map"), path
        if "additionalProperties" in field:
            assert 0 < field["maxProperties"] <= 64, path


def test_whole_numbers_of_the_spec_are_bounded() -> None:
    own = [one for one in ALL if one[0].startswith(".spec") and one[1].get("type") == "integer"]
    core = (".podTemplate.", ".networkPolicy.")
    for path, field in own:
        if not any(part in path for part in core):
            assert "enum" in field or {"minimum", "maximum"} <= set(field), path


def test_a_default_of_an_object_fulfils_the_rules_of_that_object() -> None:
    """The API server judges it as it is written, before the defaults inside of it."""
    for path, field in ALL:
        if isinstance(field.get("default"), dict):
            shallow = {**field, "properties": {}}
            assert list(broken_rules(field["default"], field["default"], shallow)) == [], path


def test_every_rule_says_what_is_wrong() -> None:
    found = [rule for _, field in ALL for rule in field.get("x-kubernetes-validations", [])]
    assert len(found) >= 10
    for rule in found:
        assert 0 < len(rule["message"]) <= 2048
        assert rule["message"][0].islower(), rule["message"]


def test_lists_that_are_maps_require_their_keys() -> None:
    for path, field in ALL:
        for key in field.get("x-kubernetes-list-map-keys", []):
            assert key in field["items"]["required"], path


def test_it_can_be_scaled_and_has_a_status_of_its_own() -> None:
    subresources = version_of_crd()["subresources"]
    assert subresources["status"] == {}
    paths = {path for path, _ in ALL}
    assert set(subresources["scale"].values()) <= paths


def test_columns_show_fields_that_exist() -> None:
    paths = {path for path, _ in ALL}
    for column in version_of_crd()["additionalPrinterColumns"]:
        plain = column["jsonPath"].partition("[")[0]
        assert plain in paths or plain.startswith(".metadata."), column


def test_it_can_be_applied_by_the_client_side_too() -> None:
    assert len(str(crd())) < MAX_ANNOTATION_BYTES


# --- Defaults -----------------------------------------------------------------------------------


def test_nothing_said_means_three_nodes_with_a_redis() -> None:
    resource = cluster()
    del resource["spec"]
    spec = defaulted(resource, root_schema())["spec"]
    assert spec["replicas"] == 3
    assert spec["raft"] == {"heartbeatMs": 100, "electionTimeoutMs": 500, "voters": 7}
    assert spec["ring"] == {"virtualNodes": 160}
    assert spec["storage"]["retention"] == {"whenScaled": "Delete", "whenDeleted": "Retain"}
    assert spec["redis"]["managed"]["resources"]["limits"] == {"memory": "512Mi"}
    assert spec["podDisruptionBudget"] == {"enabled": True}
    assert errors_of(resource) == []


def test_an_external_redis_does_not_bring_a_managed_one() -> None:
    resource = cluster(redis={"external": {"urlSecretRef": {"name": "redis"}}})
    redis = defaulted(resource, root_schema())["spec"]["redis"]
    assert redis == {"external": {"urlSecretRef": {"name": "redis", "key": "url"}}}
    assert errors_of(resource) == []


# --- What it refuses ----------------------------------------------------------------------------

EXTERNAL = {"external": {"urlSecretRef": {"name": "redis"}}}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"replicas": 0}, "less than the minimum"),
        ({"replicas": 10}, "greater than the maximum"),
        ({"replica": 3}, "'replica' was unexpected"),
        ({"raft": {"voters": 2}}, "is not one of"),
        ({"raft": {"heartbeatMs": 101}}, "at least 5 times raft.heartbeatMs"),
        ({"raft": {"electionTimeoutMs": 499}}, "at least 5 times raft.heartbeatMs"),
        ({"redis": {}}, "exactly one of redis.managed and redis.external"),
        ({"redis": {"managed": {}, **EXTERNAL}}, "exactly one of redis.managed and redis.external"),
        ({"redis": {"external": {}}}, "'urlSecretRef' is a required property"),
        ({"redis": {"managed": {"resources": {}}}}, "limits.memory is needed"),
        ({"storage": {"size": "0"}}, "storage.size must be more than 0"),
        ({"storage": {"size": "2 GB"}}, "does not match"),
        ({"storage": {"size": "1" * 21}}, "is too long"),
        ({"redis": {"managed": {"storage": {"size": "0Gi"}}}}, "must be more than 0"),
        ({"cache": {"durability": "mirrored"}}, "is not one of"),
        (
            {"podTemplate": {"env": [{"name": "DISTSYNC_NAME", "value": "x"}]}},
            "only DISTSYNC_LOG_LEVEL and DISTSYNC_ACCESS_LOG",
        ),
        ({"podTemplate": {"labels": {"distsync.dev/cluster": "x"}}}, "belong to the operator"),
        (
            {"podTemplate": {"labels": {"app.kubernetes.io/component": "x"}}},
            "belong to the operator",
        ),
        ({"podTemplate": {"tolerations": [{}] * 33}}, "is too long"),
    ],
)
def test_a_bad_spec_is_refused_with_a_reason(spec: Manifest, message: str) -> None:
    found = errors_of(cluster(**spec))
    assert any(message in one for one in found), found


@pytest.mark.parametrize("name", ["a" * 41, "1locks", "locks-", "a.b"])
def test_a_name_that_no_service_can_have_is_refused(name: str) -> None:
    (message,) = errors_of(cluster(name))
    assert "Services and pods are named after it" in message


@pytest.mark.parametrize(
    "spec",
    [
        {"raft": {"heartbeatMs": 10, "electionTimeoutMs": 50, "voters": 1}},
        {"storage": {"size": "1.5Ti", "storageClassName": "fast"}},
        {"redis": {"managed": {"resources": {"limits": {"memory": 1073741824}}}}},
        {"podTemplate": {"env": [{"name": "DISTSYNC_LOG_LEVEL", "value": "debug"}]}},
        {"podTemplate": {"labels": {"app.kubernetes.io/part-of": "shop"}}},
        {
            "networkPolicy": {
                "clients": [
                    {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}},
                    {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                ]
            }
        },
    ],
)
def test_a_good_spec_is_not_refused(spec: Manifest) -> None:
    assert errors_of(cluster(**spec)) == []


# --- What cannot be changed ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"ring": {"virtualNodes": 8}}, {"ring": {"virtualNodes": 9}}, "virtualNodes cannot"),
        ({"ring": {"virtualNodes": 8}}, {}, "virtualNodes cannot"),
        ({"storage": {"size": "10Gi"}}, {"storage": {"size": "9Gi"}}, "storage.size can only grow"),
        ({"storage": {"size": "10Gi"}}, {}, "storage.size can only grow"),
        ({}, {"storage": {"storageClassName": "fast"}}, "storageClassName cannot be changed"),
        ({"storage": {"storageClassName": "fast"}}, {}, "storageClassName cannot be changed"),
        ({}, {"redis": EXTERNAL}, "cannot become redis.external or the reverse"),
        ({"redis": EXTERNAL}, {}, "cannot become redis.external or the reverse"),
        (
            {"redis": {"managed": {"storage": {"size": "3Gi"}}}},
            {"redis": {"managed": {}}},
            "redis.managed.storage.size can only grow",
        ),
    ],
)
def test_what_would_lose_data_cannot_be_changed(
    before: Manifest, after: Manifest, message: str
) -> None:
    assert errors_of(cluster(**before)) == errors_of(cluster(**after)) == []
    found = errors_of(cluster(**after), old=cluster(**before))
    assert any(message in one for one in found), found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"replicas": 5}),
        ({"storage": {"size": "1024Mi"}}, {"storage": {"size": "1Gi"}}),
        ({"storage": {"size": "1Gi"}}, {"storage": {"size": "1100M"}}),
        ({"redis": EXTERNAL}, {"redis": {"external": {"urlSecretRef": {"name": "other"}}}}),
        ({}, {"paused": True, "cache": {"maxBytes": 1048576}}),
    ],
)
def test_everything_else_can(before: Manifest, after: Manifest) -> None:
    assert errors_of(cluster(**after), old=cluster(**before)) == []
