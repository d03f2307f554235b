"""What the pods of Kubernetes say is understood."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from distsync_operator.kube import Kube
from distsync_operator.model import Trouble
from distsync_operator.observe import observe_objects, pod_trouble, read_claims
from kube.api_double import ApiDouble
from kube.samples import cluster


def waiting(reason: str, message: str = "", **last: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"state": state, "lastState": last}]}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    return {"conditions": [condition]}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (waiting("ImagePullBackOff", "not found"), "ImagePullBackOff", "not found"),
        (waiting("ErrImageNeverPull", "not present"), "ErrImageNeverPull", "not present"),
        (
            waiting("CrashLoopBackOff", "back-off 10s", terminated={"exitCode": 2}),
            "CrashLoopBackOff",
            "back-off 10s (exit code 2)",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "queues" not found'),
            "CreateContainerConfigError",
            'secret "queues" not found',
        ),
        (
            unscheduled("pod has unbound immediate PersistentVolumeClaims"),
            "Unschedulable",
            "pod has unbound immediate PersistentVolumeClaims",
        ),
    ],
)
def test_a_pod_that_will_not_run_by_itself_says_why(
    status: dict[str, Any], reason: str, message: str
) -> None:
    body = {"metadata": {"name": "demo-0"}, "status": status}
    assert pod_trouble(body) == Trouble(reason=reason, message=message)


@pytest.mark.parametrize(
    "status",
    [
        {},
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        {"containerStatuses": [{"state": {"running": {}}}]},
    ],
)
def test_a_pod_that_is_only_starting_is_no_trouble(status: dict[str, Any]) -> None:
    assert pod_trouble({"status": status}) is None


def test_a_claim_of_a_pod_that_is_gone_is_going() -> None:
    """The StatefulSet made it belong to its pod as it was scaled down."""
    body = {
        "metadata": {
            "name": "data-demo-3",
            "uid": "claim",
            "ownerReferences": [{"kind": "Pod", "name": "demo-3", "uid": "old"}],
        },
        "spec": {"resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Bound"},
    }
    for pod_uids, is_going in (({"old"}, False), ({"new"}, True), (set[str](), True)):
        (claim,) = read_claims("demo", [body], pod_uids)
        assert claim.terminating == is_going


def creation(number: int, uid: str, reason: str, second: int) -> dict[str, Any]:
    """An Event of a StatefulSet."""
    return {
        "metadata": {"name": f"event-{number}", "namespace": "apps"},
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": f"{reason} of demo-0",
        "lastTimestamp": f"2026-01-01T00:00:0{second}Z",
    }


@pytest.mark.parametrize(
    ("times", "is_told"),
    [
        ({}, False),
        ({"FailedCreate": 1}, True),
        ({"SuccessfulCreate": 1, "FailedCreate": 2}, True),
        ({"SuccessfulCreate": 1, "FailedCreate": 1}, True),
        ({"SuccessfulCreate": 2, "FailedCreate": 1}, False),
    ],
)
async def test_missing_pods_are_explained_by_the_newest_event_of_their_stateful_set(
    times: dict[str, int], is_told: bool
) -> None:
    async with ApiDouble() as api, ApiClient(Configuration(host=api.url)) as client:
        metadata = {"name": "demo", "namespace": "apps"}
        body = api.create("StatefulSet", {"metadata": metadata, "spec": {"replicas": 1}})
        api.create("Event", creation(0, "of-another", "FailedCreate", 9))
        for number, (reason, second) in enumerate(times.items(), 1):
            api.create("Event", creation(number, body["metadata"]["uid"], reason, second))
        seen = await observe_objects(Kube(client), cluster(), has_monitor=False)
    assert seen.stateful_set is not None
    told = Trouble(reason="FailedCreate", message="FailedCreate of demo-0")
    assert seen.stateful_set.trouble == (told if is_told else None)
