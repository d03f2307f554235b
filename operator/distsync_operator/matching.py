"""Whether a live object says what a manifest wants, however the API server completed it.

The live object must contain the manifest: defaults that the API server filled in do not count, nor
does the spelling of a quantity. Elements of lists that have a `name` are compared by it, since
others may have added some; other lists are compared whole. What was wanted once and is not any more
is found by the digest of the manifest in an annotation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distsync_operator import names
from distsync_operator.quantity import parse_quantity
from distsync_operator.resources.common import digest
from distsync_operator.spec import Manifest


def stamped(manifest: Manifest) -> Manifest:
    """Return the manifest with its own digest as an annotation."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), names.HASH_ANNOTATION: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def lacking(live: Any, wanted: Any) -> frozenset[str]:
    """Return the paths of all that `wanted` names and `live` does not have."""
    return frozenset(path.removeprefix(".") for path in _lacking(live, wanted, ""))


def _lacking(live: Any, wanted: Any, path: str) -> Iterator[str]:
    if live == wanted:
        return
    match live, wanted:
        case dict(), dict():
            for key, value in wanted.items():
                yield from _lacking(live.get(key), value, f"{path}.{key}")
        case list(), [{"name": _}, *_] if all("name" in item for item in wanted):
            named = {item.get("name"): item for item in live if isinstance(item, dict)}
            for item in wanted:
                name = item["name"]
                yield from _lacking(named.get(name), item, f"{path}[{name}]")
        case list(), list() if len(live) == len(wanted):
            for index, (one, other) in enumerate(zip(live, wanted, strict=True)):
                yield from _lacking(one, other, f"{path}[{index}]")
        case _ if not _is_same(live, wanted):
            yield path


def _is_same(live: Any, wanted: Any) -> bool:
    if live is None:
        return wanted in ({}, [], "", False, 0)  # the API server leaves out what is empty
    if isinstance(live, bool) or isinstance(wanted, bool):
        return False
    if isinstance(live, str | int) and isinstance(wanted, str | int):
        value = parse_quantity(live)
        return value is not None and value == parse_quantity(wanted)
    return False
