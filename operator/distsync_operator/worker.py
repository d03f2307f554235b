"""One task a resource: look, decide, do one thing, say so; again at once while there is more.

Events only wake a worker: what happened is seen by looking. Those that come during a pass are one
more pass. Without events a worker looks again after a while, soon while something is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from dataclasses import dataclass, replace
from typing import Any

from distsync_operator import names
from distsync_operator.boottime import boottime_s, precise_timestamp, timestamp
from distsync_operator.errors import KubeError, NodeError, OperatorError, SpecError
from distsync_operator.execute import describe, execute
from distsync_operator.kube import Kube
from distsync_operator.matching import lacking
from distsync_operator.metrics import Metrics
from distsync_operator.model import (
    Apply,
    Desired,
    ObjectKey,
    Observed,
    Plan,
    Trouble,
    key_of,
)
from distsync_operator.nodes import Nodes
from distsync_operator.observe import observe_nodes, observe_objects
from distsync_operator.plan import plan, sets
from distsync_operator.plan.situation import Situation
from distsync_operator.resources.common import Defaults
from distsync_operator.resources.secret import secret_of
from distsync_operator.spec import Cluster, Manifest, read_cluster
from distsync_operator.status import change_of, spec_status, status_of
from distsync_operator.turns import Turns

logger = logging.getLogger(__name__)

MONITOR_SECONDS = 600.0
MANY_REFUSALS = 10
# What the API server refuses with one of these it will refuse again until somebody mends it.
_REFUSALS = (400, 403, 422)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a worker rests, in seconds, when nothing wakes it."""

    after_action: float = 0.1
    under_way: float = 1.0
    in_trouble: float = 10.0
    settled: float = 60.0
    least: float = 0.1  # between two passes, however many events there are


class Shared:
    """What all workers of an operator have in common."""

    def __init__(self, kube: Kube, defaults: Defaults, metrics: Metrics, pace: Pace) -> None:
        self.kube = kube
        self.defaults = defaults
        self.metrics = metrics
        self.pace = pace
        self.turns = Turns()
        self._has_monitor = False
        self._looked_at = -MONITOR_SECONDS

    async def has_monitor(self) -> bool:
        """Whether there are ServiceMonitors here; asked again from time to time."""
        now = boottime_s()
        if now - self._looked_at >= MONITOR_SECONDS:
            version, plural = "monitoring.coreos.com/v1", "servicemonitors"
            self._has_monitor = await self.kube.serves(version, plural)
            self._looked_at = now
        return self._has_monitor


class Worker:
    """Looks after one resource until it is gone; a resource made anew has another uid."""

    def __init__(self, shared: Shared, namespace: str, name: str, uid: str) -> None:
        self._shared = shared
        self._namespace, self._name, self.uid = namespace, name, uid
        self._woken = asyncio.Event()
        self._secret: str | None = None
        self._nodes: Nodes | None = None
        self._told: Trouble | None = None
        self._altered: dict[ObjectKey, frozenset[str]] = {}
        self._failures = self._refusals = 0
        self._is_refused = False

    def wake(self) -> None:
        """Something happened."""
        self._woken.set()

    async def run(self) -> None:
        """Work until the resource is gone."""
        try:
            while True:
                self._woken.clear()
                rest = await self._safe_pass()
                if rest is None:
                    return
                await asyncio.sleep(self._shared.pace.least)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await self._woken.wait()
        finally:
            self._shared.turns.forget(self.uid)
            await self._use_secret(None)

    async def _safe_pass(self) -> float | None:
        """Make a pass; whatever fails is tried again, later each time."""
        rest: float | None
        try:
            with self._shared.metrics.pass_seconds.time():
                rest = await self._pass()
        except KubeError as error:
            logger.warning("%s/%s: %s", self._namespace, self._name, error)
        except Exception:  # a bug must stop neither this resource for good nor any other
            logger.exception("%s/%s: the pass failed", self._namespace, self._name)
        else:
            self._failures = 0
            self._shared.metrics.passes.labels("done").inc()
            return rest
        self._shared.metrics.passes.labels("failed").inc()
        self._failures = min(self._failures + 1, 5)
        return min(self._shared.pace.in_trouble, 0.5 * 2.0**self._failures)

    async def _pass(self) -> float | None:
        body = await self._shared.kube.get(names.KIND, self._namespace, self._name)
        if body is None or body["metadata"]["uid"] != self.uid:
            return None
        before = body.get("status") or {}
        try:
            cluster = read_cluster(body)
        except SpecError as error:
            self._shared.turns.skip(self.uid)
            trouble = Trouble(reason="InvalidSpec", message=str(error))
            await self._write(before, spec_status(body, trouble, before, timestamp()))
            return self._shared.pace.in_trouble
        if cluster.deleting:
            self._shared.turns.skip(self.uid)
            return self._shared.pace.settled
        return await self._work(cluster, before)

    async def _work(self, cluster: Cluster, before: Manifest) -> float:
        observed = await self._observe(cluster)
        desired = Desired(
            cluster=cluster, defaults=self._shared.defaults, token=secrets.token_hex(24)
        )
        desired, decision = self._decide(observed, desired)
        failure = await self._execute(cluster, observed, decision)
        status = status_of(observed, desired, decision, before, timestamp(), failure)
        await self._write(before, status)
        await self._tell_trouble(cluster, failure or decision.trouble)
        return self._rest(decision, failure)

    def _decide(self, observed: Observed, desired: Desired) -> tuple[Desired, Plan]:
        """Plan, after finding out whether it is this cluster's turn."""
        turns, situation = self._shared.turns, Situation(observed, desired)
        if desired.cluster.spec.paused:
            turns.skip(self.uid)
            return desired, plan(observed, desired)
        is_upgrade, is_well = sets.is_upgrade(situation), situation.is_whole
        if is_upgrade:
            desired = replace(desired, waits_for=turns.before(self.uid, is_well=is_well))
        decision = plan(observed, desired)
        is_busy = _is_busy(situation, decision)
        turns.saw(self.uid, is_upgrade=is_upgrade, is_well=is_well, is_busy=is_busy)
        return desired, decision

    async def _observe(self, cluster: Cluster) -> Observed:
        kube = self._shared.kube
        has_monitor = await self._shared.has_monitor()
        observed = await observe_objects(kube, cluster, has_monitor=has_monitor)
        observed = replace(observed, altered=self._altered)
        await self._use_secret(secret_of(observed.objects, cluster.name))
        if self._nodes is None:
            return observed
        answers, epoch, ring = await observe_nodes(self._nodes, observed)
        return replace(observed, nodes=answers, ring=ring, ring_epoch=epoch)

    async def _use_secret(self, secret: str | None) -> None:
        """Have connections to nodes with this secret, and no others."""
        if secret == self._secret:
            return
        if self._nodes is not None:
            await self._nodes.__aexit__(None, None, None)
        self._nodes, self._secret = None, secret
        if secret is not None:
            self._nodes = await Nodes(secret).__aenter__()

    async def _execute(
        self, cluster: Cluster, observed: Observed, decision: Plan
    ) -> Trouble | None:
        action = decision.action
        self._is_refused = False
        if action is None:
            self._refusals = 0
            return None
        pods = {pod.name: pod for pod in observed.pods}
        self._shared.metrics.actions.labels(type(action).__name__).inc()
        try:
            answer = await execute(action, cluster, self._shared.kube, self._nodes, pods)
        except NodeError as error:  # a refusal is usual: leaders change, names are still taken
            logger.info("%s/%s: %s: %s", self._namespace, self._name, describe(action), error)
            return None if self._is_passing() else _trouble("NodeRefused", error)
        except KubeError as error:
            if error.status == 409:
                return None  # somebody was faster; the next pass sees what is there now
            self._is_refused = error.status in _REFUSALS
            return _trouble(error.reason or "Refused", error)
        self._refusals = 0
        text = describe(action)
        logger.info("%s/%s: %s", self._namespace, self._name, text)
        operation = decision.operation.type if decision.operation is not None else "Maintain"
        await self._event(cluster, "Normal", operation, text)
        if isinstance(action, Apply) and answer is not None:
            await self._note_altered(cluster, action.manifest, answer)
        return None

    async def _note_altered(self, cluster: Cluster, manifest: Manifest, answer: Manifest) -> None:
        """Remember what could not be had although it was applied: trying again would change
        nothing, and would never end."""
        key = key_of(manifest)
        fields = lacking(answer, manifest)
        if not fields:
            self._altered.pop(key, None)
        elif fields != self._altered.get(key):
            self._altered[key] = fields
            text = (
                f"{key[0]} {key[1]} is not as it was applied, and is left so: an admission webhook"
                f" changes {', '.join(sorted(fields))}"
            )
            logger.warning("%s/%s: %s", self._namespace, self._name, text)
            await self._event(cluster, "Warning", "Altered", text)

    def _is_passing(self) -> bool:
        """Whether a refusal is one of a few; repeated, it is worth saying."""
        self._refusals += 1
        return self._refusals < MANY_REFUSALS

    def _rest(self, decision: Plan, failure: Trouble | None) -> float:
        pace = self._shared.pace
        if self._is_refused:
            return pace.in_trouble
        if failure is not None or self._refusals:
            return pace.under_way
        if decision.action is not None:
            return pace.after_action
        if decision.operation is not None:
            return pace.under_way
        if decision.trouble is not None:
            return pace.in_trouble
        # Not all at once; what it decides is only when this process looks again.
        return pace.settled * random.uniform(0.8, 1.2)

    async def _write(self, before: Manifest, status: Manifest) -> None:
        """Write the status if it says anything new."""
        change = change_of(before, status)
        if change is None:
            return
        self._shared.metrics.status_writes.inc()
        await self._shared.kube.patch(
            names.KIND, self._namespace, self._name, {"status": change}, subresource="status"
        )

    async def _tell_trouble(self, cluster: Cluster, trouble: Trouble | None) -> None:
        if trouble == self._told:
            return
        self._told = trouble
        if trouble is not None:
            await self._event(cluster, "Warning", trouble.reason, trouble.message)

    async def _event(self, cluster: Cluster, kind: str, reason: str, message: str) -> None:
        """Leave an Event; one that cannot be left is not worth a failure."""
        now = precise_timestamp()
        event: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{cluster.name}.{secrets.token_hex(8)}",
                "namespace": cluster.namespace,
            },
            "involvedObject": {
                "apiVersion": f"{names.GROUP}/{names.VERSION}",
                "kind": names.KIND,
                "name": cluster.name,
                "namespace": cluster.namespace,
                "uid": cluster.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message[:1_000],
            "source": {"component": names.MANAGER},
            "firstTimestamp": f"{now[:19]}Z",
            "lastTimestamp": f"{now[:19]}Z",
            "count": 1,
        }
        try:
            await self._shared.kube.create(cluster.namespace, event)
        except OperatorError as error:
            logger.info("no Event could be left: %s", error)


def _trouble(reason: str, error: OperatorError) -> Trouble:
    return Trouble(reason=reason, message=str(error))


def _is_busy(situation: Situation, decision: Plan) -> bool:
    """Whether pods of the cluster are being replaced, or are about to be."""
    redis = situation.observed.redis_set
    return (
        any(situation.is_outdated(pod) for pod in situation.observed.pods)
        or (decision.operation is not None and decision.operation.type != "GrowVolumes")
        or (redis is not None and redis.ready_replicas < 1)
    )


class Workers:
    """All workers of an operator, found by the name of their resource."""

    def __init__(self, shared: Shared, group: asyncio.TaskGroup) -> None:
        self._shared = shared
        self._group = group
        self._workers: dict[tuple[str, str], Worker] = {}

    def saw(self, namespace: str, name: str, uid: str) -> None:
        """A resource is there, or has changed."""
        worker = self._workers.get((namespace, name))
        if worker is None or worker.uid != uid:
            worker = Worker(self._shared, namespace, name, uid)
            self._workers[namespace, name] = worker
            self._shared.turns.know(uid, f"{namespace}/{name}")
            self._group.create_task(self._run(worker, (namespace, name)))
            self._shared.metrics.clusters.set(len(self._workers))
        worker.wake()

    def touched(self, namespace: str, name: str) -> None:
        """Something that belongs to a resource has changed."""
        worker = self._workers.get((namespace, name))
        if worker is not None:
            worker.wake()

    async def _run(self, worker: Worker, key: tuple[str, str]) -> None:
        await worker.run()
        if self._workers.get(key) is worker:
            del self._workers[key]
            self._shared.metrics.clusters.set(len(self._workers))
