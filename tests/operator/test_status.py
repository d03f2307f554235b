"""The status, from what was seen and decided; and whose turn a rollout of the operator is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from distsync_operator.model import Observed, Operation, Plan, Trouble
from distsync_operator.plan import plan
from distsync_operator.status import change_of, status_of
from distsync_operator.turns import Turns
from kube.samples import cluster, desired, observed

WISH = desired(cluster(generation=4))


def conditions(status: dict[str, Any]) -> dict[str, str]:
    """Types and statuses."""
    return {one["type"]: one["status"] for one in status["conditions"]}


def test_a_cluster_at_rest_is_ready_and_says_who_leads() -> None:
    seen = observed(WISH, leader=1)
    status = status_of(seen, WISH, plan(seen, WISH), {}, "t1")
    assert conditions(status) == {
        "Available": "True",
        "Degraded": "False",
        "Progressing": "False",
        "Ready": "True",
        "RedisReady": "True",
    }
    assert (status["leader"], status["observedGeneration"]) == ("demo-1", 4)
    assert (status["replicas"], status["readyReplicas"]) == (3, 3)
    assert [member["role"] for member in status["members"]] == ["voter", "leader", "voter"]
    assert "operation" not in status


@pytest.mark.parametrize("change", [{"serving": False}, {"ring_epoch": 3}])
def test_a_cluster_is_not_ready_before_every_node_serves_its_part_of_the_same_ring(
    change: dict[str, Any],
) -> None:
    seen = observed(WISH)
    nodes = {**seen.nodes, "demo-1": replace(seen.nodes["demo-1"], **change)}
    seen = replace(seen, nodes=nodes)
    decision = plan(seen, WISH)
    assert decision.action is None
    assert decision.operation is not None, "it is looked at again soon"
    status = status_of(seen, WISH, decision, {}, "t1")
    assert status["readyReplicas"] == 3
    assert conditions(status) | {"Ready": "", "Progressing": ""} == {
        "Available": "True",
        "Degraded": "False",
        "Progressing": "",
        "Ready": "",
        "RedisReady": "True",
    }
    (ready,) = [one for one in status["conditions"] if one["type"] == "Ready"]
    assert (ready["status"], ready["reason"]) == ("False", "NodesNotReady")
    assert ready["message"] == "2 of 3 nodes are ready and serve their part of the ring"


def test_the_ring_of_a_node_that_is_no_member_says_nothing_about_the_cluster() -> None:
    seen = observed(WISH)
    removed = replace(seen.nodes["demo-1"], member_id="another", state="removed", ring_epoch=9)
    seen = replace(seen, nodes={**seen.nodes, "demo-9": removed})
    assert conditions(status_of(seen, WISH, plan(seen, WISH), {}, "t1"))["Ready"] == "True"


def test_nothing_is_written_when_nothing_has_changed() -> None:
    seen = observed(WISH)
    first = status_of(seen, WISH, Plan(), {}, "t1")
    assert change_of({}, first) == first
    assert change_of(first, status_of(seen, WISH, Plan(), first, "t2")) is None


def test_a_condition_keeps_its_time_until_its_status_changes() -> None:
    seen = observed(WISH)
    trouble = Trouble(reason="CrashLoopBackOff", message="exit code 2")
    first = status_of(seen, WISH, Plan(), {}, "t1")
    second = status_of(seen, WISH, Plan(trouble=trouble), first, "t2")
    times = {one["type"]: one["lastTransitionTime"] for one in second["conditions"]}
    assert times == {
        "Available": "t1",
        "Degraded": "t2",
        "Progressing": "t1",
        "Ready": "t2",
        "RedisReady": "t1",
    }


def test_what_is_over_is_taken_out_of_the_status() -> None:
    seen = observed(WISH)
    busy = Plan(operation=Operation(type="ScaleUp", target="demo-3", step="add learner"))
    before = status_of(seen, WISH, busy, {}, "t1")
    assert before["operation"] == {"type": "ScaleUp", "target": "demo-3", "step": "add learner"}
    change = change_of(before, status_of(seen, WISH, Plan(), before, "t2"))
    assert change is not None
    assert change["operation"] is None


def test_nothing_seen_yet_is_neither_ready_nor_available() -> None:
    status = status_of(Observed(), WISH, Plan(), {}, "t1")
    said = conditions(status)
    assert (said["Available"], said["Ready"], said["RedisReady"]) == ("False", "False", "False")


def test_a_cluster_that_waits_for_its_turn_is_ready_and_says_for_whom() -> None:
    waiting = replace(WISH, waits_for="apps/other")
    status = status_of(observed(WISH), waiting, Plan(), {}, "t1")
    assert conditions(status)["Ready"] == "True"
    (progressing,) = [one for one in status["conditions"] if one["type"] == "Progressing"]
    assert (progressing["status"], progressing["reason"]) == ("True", "WaitsForTurn")
    assert "apps/other" in progressing["message"]


# --- Turns --------------------------------------------------------------------------------------


def looked(
    turns: Turns, uid: str, *, upgrade: bool = False, well: bool = True, busy: bool = False
) -> bool:
    """Make a pass over a cluster as a worker does; return whether it may begin."""
    before = turns.before(uid, is_well=well) if upgrade else ""
    turns.saw(uid, is_upgrade=upgrade, is_well=well, is_busy=busy)
    return upgrade and not before


def turns_of(*uids: str) -> Turns:
    """Some clusters that nobody has looked at."""
    turns = Turns()
    for uid in uids:
        turns.know(uid, f"apps/{uid}")
    return turns


def test_one_cluster_at_a_time_replaces_its_pods() -> None:
    turns = turns_of("a", "b", "c")
    assert not looked(turns, "a", upgrade=True)  # others may be under way: nobody has looked
    assert not looked(turns, "b", upgrade=True)
    assert looked(turns, "c", upgrade=True)
    assert turns.before("a", is_well=True) == "apps/c"
    looked(turns, "c", well=False, busy=True)
    assert not looked(turns, "a", upgrade=True)
    looked(turns, "c")
    assert looked(turns, "a", upgrade=True)
    assert not looked(turns, "b", upgrade=True)
    turns.forget("a")
    assert looked(turns, "b", upgrade=True)


def test_a_turn_that_has_begun_goes_on_although_pods_are_away() -> None:
    turns = turns_of("a", "b")
    looked(turns, "b", upgrade=True)
    assert looked(turns, "a", upgrade=True)
    assert looked(turns, "a", upgrade=True, well=False)  # first Redis, then the nodes
    assert not looked(turns, "b", upgrade=True)


def test_a_cluster_that_is_not_well_comes_last_and_holds_nobody_up() -> None:
    turns = turns_of("a", "b", "sick")
    for uid in ("a", "b"):
        looked(turns, uid, upgrade=True)
    assert not looked(turns, "sick", upgrade=True, well=False)
    assert turns.before("sick", is_well=False) == "apps/a"
    for uid in ("a", "b"):
        assert looked(turns, uid, upgrade=True)
        assert not looked(turns, "sick", upgrade=True, well=False)
        looked(turns, uid)
    assert looked(turns, "sick", upgrade=True, well=False)
    looked(turns, "sick", well=False, busy=True)
    turns.know("late", "apps/late")
    assert looked(turns, "late", upgrade=True)


def test_a_version_that_does_not_work_stops_at_the_first_cluster_that_was_well() -> None:
    turns = turns_of("a", "b")
    looked(turns, "b", upgrade=True)
    assert looked(turns, "a", upgrade=True)
    for _ in range(3):
        looked(turns, "a", well=False, busy=True)
        assert not looked(turns, "b", upgrade=True)


def test_nobody_waits_for_a_cluster_that_was_done_or_that_is_left_alone() -> None:
    turns = turns_of("a", "b", "paused")
    turns.skip("paused")
    looked(turns, "a")
    looked(turns, "a", well=False, busy=True)  # a machine is lost
    assert looked(turns, "b", upgrade=True)
