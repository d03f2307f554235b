"""What the charts render to: judged by the schemas of Kubernetes, and kept beside as it was."""

from __future__ import annotations

import itertools
import os
from typing import Any

import helm_python
import pytest
import yaml
from click.testing import CliRunner

from distsync.command.app import app
from kubernetes_charts import (
    CHARTS,
    ROOT,
    by_kind,
    crd,
    render,
    strictly_valid,
    template_of,
)

Manifest = dict[str, Any]

VARIANTS: dict[str, tuple[str, Manifest]] = {
    "operator": ("distsync", {"crds": {"install": False}}),
    "operator-in-namespaces": (
        "distsync",
        {
            "crds": {"install": False},
            "watch": {"namespaces": ["team-a", "team-b"]},
            "replicas": 2,
            "image": {"repository": "mirror.example/operator", "tag": "1"},
            "imagePullSecrets": [{"name": "mirror"}],
            "serviceAccount": {"name": "named", "annotations": {"example.com/role": "a"}},
            "podLabels": {"team": "a"},
            "podAnnotations": {"example.com/scrape": "true"},
            "nodeSelector": {"kubernetes.io/os": "linux"},
            "tolerations": [{"operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
        },
    ),
    "cluster": ("distsync-cluster", {}),
    "cluster-with-values": (
        "distsync-cluster",
        {
            "name": "other",
            "labels": {"team": "a"},
            "annotations": {"example.com/a": "b"},
            "spec": {"replicas": 5, "podTemplate": {"imagePullSecrets": [{"name": "mirror"}]}},
            "test": {"image": {"repository": "mirror.example/node", "tag": "1"}, "cache": False},
        },
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_rendered_is_valid_and_as_it_was(variant: str) -> None:
    chart, values = VARIANTS[variant]
    documents = render(chart, values)
    for document in documents:
        if not document["apiVersion"].startswith("distsync.dev/"):
            strictly_valid(document)
    golden = ROOT / f"tests/operator/charts/golden/{variant}.yaml"
    text = yaml.safe_dump_all(documents, sort_keys=False, width=98)
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert golden.read_text() == text, "if that is right, run this test with UPDATE_GOLDEN=1"


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_finds_nothing_to_complain_about(chart: str) -> None:
    report = helm_python.lint(ROOT / "helm" / chart, strict=True, kube_version="v1.30.0")
    severe = [one for one in report["messages"] if one["severity"] > 1]
    assert severe == []
    assert report["errors"] == []


@pytest.mark.parametrize("chart", CHARTS)
def test_helm_is_told_which_kubernetes_the_definition_needs(chart: str) -> None:
    assert helm_python.Chart.load(ROOT / "helm" / chart).metadata["kubeVersion"] == ">=1.30.0-0"


@pytest.mark.parametrize("chart", CHARTS)
def test_rendering_twice_gives_the_same(chart: str) -> None:
    assert render(chart, {}) == render(chart, {})


@pytest.mark.parametrize("chart", CHARTS)
def test_everything_namespaced_names_its_namespace(chart: str) -> None:
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}
    for document in render(chart, {}):
        if document["kind"] not in cluster_wide:
            assert document["metadata"]["namespace"], document["kind"]


# --- The definition -----------------------------------------------------------------------------


def test_the_chart_installs_the_definition_and_keeps_it() -> None:
    (installed,) = by_kind(render("distsync", {}), "CustomResourceDefinition")
    metadata = installed.pop("metadata")
    source = crd()
    assert metadata["name"] == source.pop("metadata")["name"]
    assert metadata["annotations"]["helm.sh/resource-policy"] == "keep"
    assert installed == source


def test_the_definition_can_be_left_out() -> None:
    documents = render("distsync", {"crds": {"install": False}})
    assert by_kind(documents, "CustomResourceDefinition") == []


# --- What the operator may do -------------------------------------------------------------------


def rules(documents: list[Manifest], kind: str) -> list[Manifest]:
    return [rule for role in by_kind(documents, kind) for rule in role["rules"]]


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["cluster", "namespaces"])
def test_every_verb_and_resource_is_named(namespaces: list[str]) -> None:
    documents = render("distsync", {"watch": {"namespaces": namespaces}})
    for rule in (*rules(documents, "ClusterRole"), *rules(documents, "Role")):
        for word in itertools.chain(rule["apiGroups"], rule["resources"], rule["verbs"]):
            assert "*" not in word
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


def test_in_namespaces_nothing_is_cluster_wide() -> None:
    documents = render("distsync", {"watch": {"namespaces": ["team-a", "team-b"]}})
    assert by_kind(documents, "ClusterRole") == by_kind(documents, "ClusterRoleBinding") == []
    roles = {role["metadata"]["namespace"] for role in by_kind(documents, "Role")}
    assert roles == {"team-a", "team-b", "ns"}


def test_owner_references_may_block_deletion_where_that_is_enforced() -> None:
    allowed = rules(render("distsync", {}), "ClusterRole")
    (rule,) = [one for one in allowed if "distsyncclusters/finalizers" in one["resources"]]
    assert rule["verbs"] == ["update"]


def test_only_its_own_lease_may_be_taken() -> None:
    documents = render("distsync", {})
    (deployment,) = by_kind(documents, "Deployment")
    leases = [one for one in rules(documents, "Role") if one["resources"] == ["leases"]]
    names = {name for rule in leases for name in rule.get("resourceNames", [])}
    assert names == {deployment["metadata"]["name"]}
    assert {verb for rule in leases if "resourceNames" not in rule for verb in rule["verbs"]} == {
        "create"
    }


@pytest.mark.parametrize("create", [True, False])
def test_bindings_lead_to_the_account_that_the_operator_runs_as(create: bool) -> None:
    values = {"serviceAccount": {"create": create, "name": "named"}}
    documents = render("distsync", values)
    assert template_of(documents)["spec"]["serviceAccountName"] == "named"
    assert bool(by_kind(documents, "ServiceAccount")) is create
    for kind in ("RoleBinding", "ClusterRoleBinding"):
        for binding in by_kind(documents, kind):
            (subject,) = binding["subjects"]
            assert (subject["name"], subject["namespace"]) == ("named", "ns")


def test_an_account_that_is_not_created_has_to_be_named() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"serviceAccount\.name is needed"):
        render("distsync", {"serviceAccount": {"create": False}})


# --- Pods ---------------------------------------------------------------------------------------


def pods() -> list[Manifest]:
    (test,) = by_kind(render("distsync-cluster", {}), "Pod")
    return [template_of(render("distsync", {})), test]


def test_pods_meet_the_restricted_standard() -> None:
    for pod in pods():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*spec.get("initContainers", []), *spec["containers"]):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]


def test_labels_of_the_user_do_not_replace_what_the_selector_wants() -> None:
    documents = render("distsync", {"podLabels": {"app.kubernetes.io/name": "mine"}})
    (deployment,) = by_kind(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()


# --- helm test ----------------------------------------------------------------------------------


def test_the_commands_of_helm_test_exist() -> None:
    (pod,) = by_kind(render("distsync-cluster", {}), "Pod")
    steps = [*pod["spec"]["initContainers"], *pod["spec"]["containers"]]
    assert [step["name"] for step in steps] == ["lock", "push", "set", "get", "pop"]
    for step in steps:
        program, *words = step["command"]
        assert program == "distsync"
        # A wrong option would be refused before --help is looked at.
        ours = words[: words.index("--")] if "--" in words else words
        result = CliRunner().invoke(app, [*ours, "--help"])
        assert result.exit_code == 0, result.output
        options = [word for word in ours if word.startswith("--")]
        assert all(option in result.output for option in options)


def test_helm_test_uses_the_image_of_the_nodes() -> None:
    for values, image in (
        ({}, "distsync/node:0.1.0"),
        ({"spec": {"image": "mirror.example/node:2"}}, "mirror.example/node:2"),
    ):
        (pod,) = by_kind(render("distsync-cluster", values), "Pod")
        steps = (*pod["spec"]["initContainers"], *pod["spec"]["containers"])
        assert {step["image"] for step in steps} == {image}


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chart", "values", "where"),
    [
        ("distsync", {"replica": 2}, "replica"),
        ("distsync", {"watch": {"namespaces": ["Not A Name"]}}, "/watch/namespaces/0"),
        ("distsync", {"logLevel": "loud"}, "/logLevel"),
        ("distsync-cluster", {"spec": {"replica": 5}}, "replica"),
        ("distsync-cluster", {"spec": {"replicas": 0}}, "/spec/replicas"),
        ("distsync-cluster", {"spec": {"raft": {"voters": 2}}}, "/spec/raft/voters"),
        (
            "distsync-cluster",
            {"spec": {"podTemplate": {"env": [{"value": "x"}]}}},
            "/spec/podTemplate/env/0",
        ),
        ("distsync-cluster", {"name": "Not-A-Name"}, "/name"),
    ],
)
def test_wrong_values_are_refused(chart: str, values: Manifest, where: str) -> None:
    with pytest.raises(helm_python.HelmError, match=where):
        render(chart, values)


@pytest.mark.parametrize("chart", CHARTS)
def test_notes_give_the_next_three_commands(chart: str) -> None:
    rendered = helm_python.Chart.load(ROOT / "helm" / chart).render({}, name="locks", namespace="a")
    notes = rendered[f"{chart}/templates/NOTES.txt"]
    commands = [line for line in notes.splitlines() if line.startswith("  ")]
    assert len(commands) == 3
    assert all(line.split()[0] in ("kubectl", "helm") for line in commands)
