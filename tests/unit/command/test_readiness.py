"""When `distsync up` says that a cluster is ready."""

from __future__ import annotations

from typing import Any

import pytest

from distsync.command.readiness import what_is_missing
from distsync.models import ClusterStatus


def said(name: str, **changes: Any) -> ClusterStatus:
    fields = {"leader": "a", "ready": True, "serving": True, "ring_epoch": 3, **changes}
    return ClusterStatus(node=name, **fields)


def cluster(**changes: dict[str, Any]) -> dict[str, ClusterStatus | None]:
    return {name: said(name, **changes.get(name, {})) for name in "abc"}


def test_a_cluster_is_ready_when_every_node_serves_its_part_of_the_same_ring() -> None:
    assert what_is_missing(cluster()) is None


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        (
            {"ready": False, "state": "joining"},
            "b does not belong to the cluster yet (state: joining)",
        ),
        ({"ready": False, "leader": None}, "b knows no leader"),
        ({"ready": False}, "b is not ready"),
        ({"leader": "c"}, "the nodes do not agree yet who leads"),
        ({"serving": False}, "b does not serve its part of the ring"),
        ({"ring_epoch": 2}, "the nodes do not know the same ring yet"),
    ],
)
def test_what_one_node_lacks_keeps_the_cluster_from_being_ready(
    changes: dict[str, Any], missing: str
) -> None:
    assert what_is_missing(cluster(b=changes)) == missing


def test_a_node_that_does_not_answer_is_waited_for() -> None:
    assert what_is_missing({**cluster(), "b": None}) == "b does not answer"


def test_nobody_waits_for_a_member_that_was_removed() -> None:
    removed = {"state": "removed", "ready": False, "leader": None, "serving": False}
    assert what_is_missing(cluster(b={**removed, "ring_epoch": 2})) is None
    alone = {"a": said("a", **removed)}
    assert what_is_missing(alone) == "every node was removed from its cluster"
