"""Whether a live object says what a manifest wants, however the API server completed it.

The live object must contain the manifest: defaults that the API server filled in do not count, nor
does the spelling of a quantity. Elements of lists that have a `name` are compared by it, since
others may have added some; other lists are compared whole. What was wanted once and is not any more
is found by the digest of the manifest in an annotation.
"""

from __future__ import annotations

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


def says(live: Manifest, manifest: Manifest) -> bool:
    """Whether the live object needs no apply of the (unstamped) manifest."""
    return contains(live, stamped(manifest))


def contains(live: Any, wanted: Any) -> bool:
    """Whether `live` has all that `wanted` names."""
    if live == wanted:
        return True
    if isinstance(wanted, dict):
        return _map_contains(live, wanted)
    if isinstance(wanted, list):
        return _list_contains(live, wanted)
    return _same_scalar(live, wanted)


def _map_contains(live: Any, wanted: dict[str, Any]) -> bool:
    if not wanted:
        return live is None or isinstance(live, dict)
    return isinstance(live, dict) and all(
        contains(live.get(key), value) for key, value in wanted.items()
    )


def _list_contains(live: Any, wanted: list[Any]) -> bool:
    if not wanted:
        return not live
    if not isinstance(live, list):
        return False
    if all(isinstance(item, dict) and "name" in item for item in wanted):
        named = {item.get("name"): item for item in live if isinstance(item, dict)}
        return all(contains(named.get(item["name"]), item) for item in wanted)
    return len(live) == len(wanted) and all(map(contains, live, wanted))


def _same_scalar(live: Any, wanted: Any) -> bool:
    if live is None:
        return wanted in ("", False, 0)  # the API server leaves out what is empty
    if isinstance(live, bool) or isinstance(wanted, bool):
        return False
    if isinstance(live, str | int) and isinstance(wanted, str | int):
        value = parse_quantity(live)
        return value is not None and value == parse_quantity(wanted)
    return False
