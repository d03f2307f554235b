"""Judges resources by the definition as the API server does: defaults, schema, then CEL rules.

The API server's own functions on quantities are given to cel-python; everything else that the rules
use is CEL itself.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import celpy
import jsonschema
from celpy import celtypes

from kubernetes_charts import Manifest, version_of_crd

Schema = dict[str, Any]

_SUFFIXES = {
    **{unit: Decimal(1024) ** power for power, unit in enumerate(("Ki", "Mi", "Gi", "Ti"), 1)},
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T"), 1)},
}


def root_schema() -> Schema:
    """The schema of a whole resource."""
    return dict(version_of_crd()["schema"]["openAPIV3Schema"])


def defaulted(value: Any, schema: Schema) -> Any:
    """Return a value with the defaults of its schema, outermost first."""
    value = copy.deepcopy(value)
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name not in value and "default" in field:
                value[name] = copy.deepcopy(field["default"])
            if name in value:
                value[name] = defaulted(value[name], field)
    elif isinstance(value, list) and "items" in schema:
        value = [defaulted(one, schema["items"]) for one in value]
    return value


def errors_of(resource: Manifest, old: Manifest | None = None) -> list[str]:
    """Return why the API server would refuse a resource, or this change of one; [] if it would not.

    Unknown fields count as errors, as with `kubectl --validate=strict`.
    """
    schema = root_schema()
    new = defaulted(resource, schema)
    previous = defaulted(old, schema) if old is not None else None
    validator = jsonschema.Draft202012Validator(_json_schema(schema))
    found = [error.message for error in validator.iter_errors(new)]
    return found or list(broken_rules(new, previous, schema))


def broken_rules(new: Any, old: Any, schema: Schema) -> Iterator[str]:
    """Yield the message of every rule that does not hold, outermost first."""
    for rule in schema.get("x-kubernetes-validations", []):
        is_transition = "oldSelf" in rule["rule"]
        if (not is_transition or old is not None) and not _holds(rule["rule"], new, old):
            yield rule["message"]
    if isinstance(new, dict):
        for name, field in schema.get("properties", {}).items():
            if name in new:
                before = old.get(name) if isinstance(old, dict) else None
                yield from broken_rules(new[name], before, field)
    elif isinstance(new, list):
        for one in new:  # no transition rule is inside of a list
            yield from broken_rules(one, None, schema["items"])


def _json_schema(schema: Schema, *, is_root: bool = True) -> Schema:
    kept = dict(schema)
    if "properties" in kept:
        kept["properties"] = {
            name: {"type": "object"} if is_root and name == "metadata" else _inner(field)
            for name, field in kept["properties"].items()
        }
        kept["additionalProperties"] = False
    if isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = _inner(kept["additionalProperties"])
    if "items" in kept:
        kept["items"] = _inner(kept["items"])
    return kept


def _inner(schema: Schema) -> Schema:
    return _json_schema(schema, is_root=False)


def _holds(rule: str, new: Any, old: Any) -> bool:
    values = {"self": celpy.json_to_cel(new)}
    if old is not None:
        values["oldSelf"] = celpy.json_to_cel(old)
    return bool(_program(rule).evaluate(values))


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions=_FUNCTIONS)


def _quantity(text: Any) -> celtypes.IntType:
    """In thousandths."""
    for suffix, factor in _SUFFIXES.items():
        if text.endswith(suffix):
            return celtypes.IntType(int(Decimal(text.removesuffix(suffix)) * factor * 1000))
    return celtypes.IntType(int(Decimal(text) * 1000))


def _is_greater_than(one: Any, other: Any) -> celtypes.BoolType:
    return celtypes.BoolType(one > other)


def _compare_to(one: Any, other: Any) -> celtypes.IntType:
    return celtypes.IntType((one > other) - (one < other))


_FUNCTIONS = {"quantity": _quantity, "isGreaterThan": _is_greater_than, "compareTo": _compare_to}
