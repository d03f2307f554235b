"""What the operator counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest


class Metrics:
    """The metrics of one operator."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.leading = Gauge(
            "distsync_operator_leading", "1 while this operator works.", registry=self.registry
        )
        self.clusters = Gauge(
            "distsync_operator_clusters", "Resources looked after.", registry=self.registry
        )
        self.passes = Counter(
            "distsync_operator_passes", "Passes by outcome.", ["outcome"], registry=self.registry
        )
        self.actions = Counter(
            "distsync_operator_actions", "Actions by kind.", ["kind"], registry=self.registry
        )
        self.status_writes = Counter(
            "distsync_operator_status_writes", "Statuses written.", registry=self.registry
        )
        self.pass_seconds = Histogram(
            "distsync_operator_pass_seconds", "Time of a pass.", registry=self.registry
        )

    def render(self) -> bytes:
        """Return them as text."""
        return generate_latest(self.registry)
