"""The load of the journeys on Kubernetes, on nodes of this machine: it counts, and it settles."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.load_process import LoadProcess
from e2e.load_program import GAP_SECONDS
from process.cluster import Cluster


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_while_the_leader_is_killed(
    tmp_path: Path, cluster: Cluster
) -> None:
    async with LoadProcess(",".join(cluster.urls), tmp_path / "load.out") as load:
        leader = cluster.wait_for_leader()
        cluster.kill(leader)
        cluster.wait_for_leader([name for name in cluster.names if name != leader])
        cluster.start(leader)
        cluster.wait_ready()
        told = await load.settle()
    assert told["broken"] == []
    assert told["lost"] == []
    assert told["pushed"] > 0
    assert told["done"]["lock"] > 0
    assert told["done"]["cache"] > 0
    # An election is a gap; it counts as unavailable from a length on.
    assert told["longest_gap_ms"] > 100
    is_counted = told["longest_gap_ms"] > 1_000 * GAP_SECONDS
    assert told["unavailable_ms"] >= (told["longest_gap_ms"] if is_counted else 0)
