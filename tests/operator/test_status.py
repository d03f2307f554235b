"""The status, from what was seen and decided; and whose turn a rollout of the operator is."""

from __future__ import annotations

from typing import Any

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


def test_one_cluster_at_a_time_replaces_its_pods() -> None:
    turns = Turns()
    turns.know("a")
    turns.know("b")
    assert not turns.may_begin("a")  # b may be under way: nobody has looked
    turns.saw("b", is_rolling=False)
    assert turns.may_begin("a")
    turns.saw("a", is_rolling=True)
    assert not turns.may_begin("b")
    turns.forget("a")
    assert turns.may_begin("b")
