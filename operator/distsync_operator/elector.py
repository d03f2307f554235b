"""Which of several operators works: the one that holds a Lease of coordination.k8s.io.

As the elector of client-go: whoever holds the Lease renews it; whoever does not takes it over when
it has not changed for its whole duration, by its own clock: the times in a Lease are those of other
machines and decide nothing. A holder that could not renew in time is over at once, before anybody
else can begin: the renewal deadline is shorter than the duration.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass

from distsync_operator.boottime import boottime_s, precise_timestamp
from distsync_operator.errors import KubeError, OperatorError
from distsync_operator.kube import Kube
from distsync_operator.spec import Manifest

logger = logging.getLogger(__name__)


class LeaseLost(OperatorError):
    """The Lease could not be renewed in time: this process must not work any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """Seconds."""

    duration: float = 15.0
    deadline: float = 10.0
    retry: float = 2.0


class Elector:
    """Takes and keeps one Lease under one identity."""

    def __init__(
        self, kube: Kube, namespace: str, name: str, identity: str, times: LeaseTimes
    ) -> None:
        self._kube = kube
        self._namespace, self._name, self._identity = namespace, name, identity
        self._times = times
        self._seen: tuple[str, float] = ("", 0.0)  # the version seen last, and since when

    async def acquire(self) -> None:
        """Return once this process holds the Lease."""
        while True:
            try:
                async with asyncio.timeout(self._times.deadline):
                    if await self._try():
                        logger.info("this operator holds the lease %s", self._name)
                        return
            except (KubeError, TimeoutError) as error:
                logger.info("the lease cannot be taken: %r", error)
            await asyncio.sleep(self._times.retry)

    async def keep(self) -> None:
        """Renew for ever.

        Raises:
            LeaseLost: it was not renewed in time, or somebody else has it.
        """
        renewed_s = boottime_s()
        while True:
            await asyncio.sleep(self._times.retry)
            asked_s = boottime_s()
            try:
                async with asyncio.timeout(max(0.0, renewed_s + self._times.deadline - asked_s)):
                    if not await self._try():
                        raise LeaseLost(f"somebody else holds the lease {self._name}")
                    renewed_s = asked_s
            except (KubeError, TimeoutError) as error:
                logger.warning("the lease could not be renewed: %r", error)
            if boottime_s() - renewed_s >= self._times.deadline:
                raise LeaseLost(f"the lease {self._name} could not be renewed in time")

    async def release(self) -> None:
        """Let somebody else take it at once."""
        with contextlib.suppress(KubeError, TimeoutError):
            async with asyncio.timeout(self._times.retry):
                lease = await self._kube.get("Lease", self._namespace, self._name)
                if lease is not None and _holder(lease) == self._identity:
                    await self._kube.replace(self._namespace, self._claimed(lease, holder=""))

    async def _try(self) -> bool:
        """Take or renew the Lease if it is free, mine or expired."""
        lease = await self._kube.get("Lease", self._namespace, self._name)
        if lease is None:
            await self._kube.create(self._namespace, self._claimed(None, self._identity))
            return True
        if _holder(lease) not in ("", self._identity) and not self._has_expired(lease):
            return False
        try:
            await self._kube.replace(self._namespace, self._claimed(lease, self._identity))
        except KubeError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _has_expired(self, lease: Manifest) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, boottime_s())
        duration = lease["spec"].get("leaseDurationSeconds") or self._times.duration
        return boottime_s() - self._seen[1] >= duration

    def _claimed(self, lease: Manifest | None, holder: str) -> Manifest:
        now = precise_timestamp()
        before = (lease or {}).get("spec") or {}
        changed = before.get("holderIdentity") != holder
        spec = {
            **before,
            "holderIdentity": holder,
            "leaseDurationSeconds": max(1, round(self._times.duration)),
            "renewTime": now,
            "acquireTime": now if changed else before.get("acquireTime", now),
            "leaseTransitions": before.get("leaseTransitions", 0) + (changed and lease is not None),
        }
        metadata = {"name": self._name, "namespace": self._namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata if lease is None else lease["metadata"],
            "spec": spec,
        }


def _holder(lease: Manifest) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
