"""Writes the files that follow from another one; `--check` says which are not current.

k8s/crd/distsyncclusters.yaml   ->  helm/distsync/files/distsyncclusters.yaml   the same bytes
                                ->  helm/distsync-cluster/values.schema.json    of `spec`
                                ->  docs/kubernetes.md                          every field
helm/*/values.yaml              ->  helm/*/README.md                            every value
helm/distsync                   ->  k8s/operator/operator.yaml                  rendered
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parent.parent
CRD = ROOT / "k8s/crd/distsyncclusters.yaml"
DOCS = ROOT / "docs/kubernetes.md"
CLUSTER_CHART = ROOT / "helm/distsync-cluster"
OPERATOR_CHART = ROOT / "helm/distsync"
NAMESPACE = "distsync-system"
FIELDS = ("<!-- fields: generated -->\n", "<!-- end of fields -->\n")
# Parts whose fields are those of Kubernetes' own types; their names in the API reference.
CORE_TYPES = {
    "spec.podTemplate.affinity": "Affinity",
    "spec.podTemplate.env[]": "EnvVar",
    "spec.podTemplate.imagePullSecrets[]": "LocalObjectReference",
    "spec.podTemplate.resources": "ResourceRequirements",
    "spec.podTemplate.securityContext": "PodSecurityContext",
    "spec.podTemplate.tolerations[]": "Toleration",
    "spec.podTemplate.topologySpreadConstraints[]": "TopologySpreadConstraint",
    "spec.networkPolicy.clients[]": "NetworkPolicyPeer",
    "spec.redis.managed.resources": "ResourceRequirements",
}

Schema = dict[str, Any]


def outputs() -> Iterator[tuple[Path, str]]:
    """Yield every generated file with what it has to say."""
    root = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    yield OPERATOR_CHART / "files/distsyncclusters.yaml", CRD.read_text()
    yield CLUSTER_CHART / "values.schema.json", cluster_values_schema(root["properties"]["spec"])
    yield ROOT / "k8s/operator/operator.yaml", operator_manifests()
    for chart in (OPERATOR_CHART, CLUSTER_CHART):
        yield chart / "README.md", chart_readme(chart)
    yield DOCS, documentation(root)


# --- values.schema.json -----------------------------------------------------------------------


def cluster_values_schema(spec: Schema) -> str:
    """Return the schema of the values of distsync-cluster; `spec` is judged as by the CRD."""
    text = {"type": "string", "maxLength": 253}
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "global": {"type": "object"},
            "name": {
                "type": "string",
                "maxLength": 40,
                "pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
            },
            "labels": {"type": "object", "additionalProperties": text},
            "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            "spec": json_schema(spec),
            "test": {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "image": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "repository": text,
                            "tag": text,
                            "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
                        },
                    },
                    "cache": {"type": "boolean"},
                    "resources": {"type": "object"},
                },
            },
        },
    }
    return json.dumps(schema, indent=1) + "\n"


def json_schema(schema: Schema) -> Schema:
    """Return what JSON schema understands of a part of a CRD; unknown fields are refused."""
    kept = {
        key: value
        for key, value in schema.items()
        if not key.startswith("x-kubernetes-") and key not in ("default", "format", "description")
    }
    if "properties" in kept:
        kept["properties"] = {key: json_schema(one) for key, one in kept["properties"].items()}
        kept["additionalProperties"] = False
    elif isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = json_schema(kept["additionalProperties"])
    if "items" in kept:
        kept["items"] = json_schema(kept["items"])
    return kept


# --- k8s/operator -----------------------------------------------------------------------------


def operator_manifests() -> str:
    """Return the operator of the chart with its default values, without what is Helm's."""
    chart = helm_python.Chart.load(OPERATOR_CHART)
    rendered = chart.render({"crds": {"install": False}}, name="distsync", namespace=NAMESPACE)
    documents = [
        without_helm(document)
        for name, text in sorted(rendered.items())
        if name.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]
    head = "# Made of helm/distsync by `make generate`; change it there.\n"
    return head + yaml.safe_dump_all(documents, sort_keys=False, width=98)


def without_helm(value: Any) -> Any:
    """Return a manifest without labels that name the chart or Helm."""
    if isinstance(value, dict):
        return {
            key: without_helm(one)
            for key, one in value.items()
            if key not in ("helm.sh/chart", "app.kubernetes.io/managed-by")
        }
    return [without_helm(one) for one in value] if isinstance(value, list) else value


# --- README.md of a chart ---------------------------------------------------------------------


def chart_readme(chart: Path) -> str:
    """Return the README of a chart: what it is, and its values with defaults."""
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    rows = "".join(
        f"| `{name}` | {described} | {default} |\n" for name, described, default in values_of(chart)
    )
    return (
        f"# {about['name']}\n\n{about['description']}. Kubernetes {about['kubeVersion'][2:6]} or "
        "later; Helm 3 or 4.\nHow it is used is in [docs/kubernetes.md](../../docs/kubernetes.md)."
        " This table is made of\n`values.yaml` by `make generate`.\n\n"
        f"| value | what it is | default |\n|---|---|---|\n{rows}"
    )


def values_of(chart: Path) -> Iterator[tuple[str, str, str]]:
    """Yield name, description and default of each value that has a comment above it."""
    text = (chart / "values.yaml").read_text()
    values = yaml.safe_load(text)
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if found := re.match(r"\s*# (.*)", line):
            comment.append(found[1])
        elif found := re.match(r"( *)([A-Za-z]\w*):", line):
            path = [part for part in path if part[0] < len(found[1])]
            path.append((len(found[1]), found[2]))
            if comment:
                names = [name for _, name in path]
                value = values
                for name in names:
                    value = value[name]
                yield ".".join(names), " ".join(comment), f"`{json.dumps(value)}`"
            comment = []
        elif not line.strip():
            comment = []


# --- docs/kubernetes.md -----------------------------------------------------------------------


def documentation(root: Schema) -> str:
    """Return the page with the tables of all fields between their marks."""
    before, rest = DOCS.read_text().split(FIELDS[0])
    _, after = rest.split(FIELDS[1])
    tables = []
    for part in ("spec", "status"):
        rows = "".join(rows_of(part, root["properties"][part]))
        tables.append(
            f"\n| field of `{part}` | type | what it is | default |\n|---|---|---|---|\n{rows}"
        )
    rules = "".join(f"- {message}\n" for message in rules_of(root))
    refused = f"\nWhat is refused besides:\n\n{rules}"
    return f"{before}{FIELDS[0]}{''.join(tables)}{refused}{FIELDS[1]}{after}"


def rows_of(path: str, schema: Schema) -> Iterator[str]:
    """Yield a row for each field below `path`."""
    for name, field in schema.get("properties", {}).items():
        inner, where = field, f"{path}.{name}"
        if field.get("type") == "array":
            inner, where = field["items"], f"{where}[]"
        core = CORE_TYPES.get(where)
        described = " ".join(field["description"].split()).replace("|", "\\|")
        default = f"`{json.dumps(field['default'])}`" if "default" in field else ""
        shown = where.removeprefix("spec.").removeprefix("status.")
        yield f"| `{shown}` | {core or type_of(field)} | {described} | {default} |\n"
        if core is None:
            yield from rows_of(where, inner)


def type_of(field: Schema) -> str:
    """Return the type of a field with its bounds."""
    if "enum" in field:
        return ", ".join(f"{one}" for one in field["enum"])
    kind = str(field.get("type", "quantity"))
    if "minimum" in field:
        return f"{kind}, {field['minimum']} to {field['maximum']}"
    if kind == "array":
        return f"list, at most {field['maxItems']}"
    return "map" if "additionalProperties" in field else kind


def rules_of(schema: Schema) -> Iterator[str]:
    """Yield the messages of all rules, outermost first."""
    for rule in schema.get("x-kubernetes-validations", []):
        yield rule["message"]
    for inner in schema.get("properties", {}).values():
        yield from rules_of(inner)
    if "items" in schema:
        yield from rules_of(schema["items"])


def main(arguments: list[str]) -> int:
    """Write the files, or with `--check` say which are not current."""
    stale = [
        (path, content)
        for path, content in outputs()
        if not path.exists() or path.read_text() != content
    ]
    for path, content in stale:
        print(f"{path.relative_to(ROOT)} {'is not current' if arguments else 'written'}")
        if not arguments:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return 1 if stale and arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
