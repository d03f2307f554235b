"""Kubernetes quantities: `2Gi`, `500m`, `1e3`."""

from __future__ import annotations

import re
from decimal import Decimal

_PATTERN = re.compile(
    r"^(?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?\d+))?$"
)
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate("kMGTPE", start=1)},
    **{f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", start=1)},
}


def parse_quantity(text: str | int | float) -> Decimal | None:
    """Return the value of a quantity, or None if it is none.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    found = _PATTERN.match(str(text))
    if found is None:
        return None
    number = Decimal(found["number"])
    if found["exponent"]:
        return number.scaleb(int(found["exponent"]))
    return number * _SUFFIXES.get(found["suffix"] or "", Decimal(1))
