"""Prometheus metrics of a node.

| name | labels | what |
|---|---|---|
| `distsync_http_requests_total` | method, route, status | answered requests; 499: client gone |
| `distsync_http_request_duration_seconds` | method, route | histogram, waiting for locks included |
| `distsync_http_requests_in_flight` | | requests being answered now, waits included |
| `distsync_raft_role` | role | 1 for the role of this node, 0 for the others |
| `distsync_raft_term`, `_commit_index`, `_applied_index`, `_config_index` | | of this node |
| `distsync_raft_has_leader` | | 1 while this node knows a leader |
| `distsync_raft_leader_changes_total` | | times this node saw another leader |
| `distsync_raft_members` | kind | voters and learners |
| `distsync_raft_match_index`, `distsync_raft_last_contact_seconds` | member | at the leader only |
| `distsync_locks_held`, `distsync_lock_grants`, `distsync_lock_waiters` | | of the local replica |
| `distsync_sessions`, `distsync_remembered_requests` | | of the local replica |
| `distsync_ready`, `distsync_disk_full` | | 0 or 1 |
| `distsync_cache_lines` | state | lines of this node in M, E, S |
| `distsync_cache_bytes`, `_max_bytes`, `_dirty_bytes`, `_kept_bytes` | | of this node |
| `distsync_cache_oldest_dirty_seconds` | | of keys whose home or only owner this node is |
| `distsync_cache_settled` | | 1: the crash of one node loses nothing of what this one answers for |
| `distsync_cache_hits_total` | | reads served from the lines here |
| `distsync_cache_misses_total` | reason | reads that were not; reasons below |
| `distsync_cache_snoops_total` | | lines here that another node read |
| `distsync_cache_invalidations_total` | | lines here that another node wrote |
| `distsync_cache_write_backs_total` | | values that Redis took from this node |
| `distsync_cache_evictions_total`, `_dropped_total` | | for want of room; lost with a lease |
| `distsync_build_info` | version | 1 |

and the usual `process_*` and `python_gc_*`. A miss is `absent`, `invalidated`, `evicted`,
`expired`, `no_lease` or `on_its_way` (`cache/misses.py` says when). `route` is the template of the
path, never the path, so the number of series is bounded. The request path pays for two list
increments: the client library's own histograms cost more than the rest of a request, so these are
kept by hand and handed over when they are read.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from distsync_node import __version__
from distsync_node.cache.service import CacheService, CacheStats
from distsync_node.errors import Unavailable, Uninitialised
from distsync_node.locks.views import Counts
from distsync_node.services.interface import Node, NodeStatus

BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
)  # fmt: skip
ROLES: Final = ("leader", "follower", "candidate", "learner")


class RouteMetrics:
    """What was answered on one route."""

    __slots__ = ("buckets", "method", "route", "seconds", "statuses")

    def __init__(self, method: str, route: str) -> None:
        self.method = method
        self.route = route
        self.statuses: dict[int, int] = {}
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.seconds = 0.0

    def observe(self, status: int, seconds: float) -> None:
        """Count one answer."""
        self.statuses[status] = self.statuses.get(status, 0) + 1
        self.buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self.seconds += seconds

    def cumulative(self) -> Iterator[tuple[str, int]]:
        """Yield (upper bound, count up to it), as the exposition format wants it."""
        total = 0
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.buckets, strict=True):
            total += count
            yield bound, total


class HttpCollector(Collector):
    """The requests of one port."""

    def __init__(
        self, routes: Callable[[], Iterable[RouteMetrics]], in_flight: Callable[[], int]
    ) -> None:
        self._routes = routes
        self._in_flight = in_flight

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        requests = CounterMetricFamily(
            "distsync_http_requests", "Answered requests", labels=("method", "route", "status")
        )
        durations = HistogramMetricFamily(
            "distsync_http_request_duration_seconds",
            "Time to answer, waiting for locks included",
            labels=("method", "route"),
        )
        for route in self._routes():
            if not route.statuses:
                continue
            labels = [route.method, route.route]
            for status, count in route.statuses.items():
                requests.add_metric([*labels, str(status)], count)
            durations.add_metric(labels, list(route.cumulative()), route.seconds)
        yield requests
        yield durations
        yield _gauge("http_requests_in_flight", "Requests being answered", self._in_flight())


class NodeCollector(Collector):
    """The state of the node behind the API."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now."""
        status = self._node.status()
        yield from _consensus(status)
        yield from _members(status)
        with contextlib.suppress(Uninitialised):  # it is still reading its data directory
            yield from _locks(self._node.machine.counts())
        yield _gauge("ready", "1 while the node serves", status.ready)
        yield _gauge("disk_full", "1 while writes are refused for want of room", status.disk_full)
        build = GaugeMetricFamily("distsync_build_info", "The running version", labels=("version",))
        build.add_metric([__version__], 1)
        yield build

    def describe(self) -> Iterable[Metric]:
        """Nothing: the node may not have started when this is registered."""
        return ()


class CacheCollector(Collector):
    """The cache of this node."""

    def __init__(self, cache: CacheService) -> None:
        self._cache = cache

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics as they are now; none without a cache."""
        with contextlib.suppress(Unavailable):
            yield from _cache_metrics(self._cache.stats())

    def describe(self) -> Iterable[Metric]:
        """Nothing: the node may not have started when this is registered."""
        return ()


def _cache_metrics(stats: CacheStats) -> Iterator[Metric]:
    lines = GaugeMetricFamily("distsync_cache_lines", "Lines by state", labels=("state",))
    for state, count in stats.lines.items():
        lines.add_metric([state], count)
    yield lines
    misses = CounterMetricFamily(
        "distsync_cache_misses", "Reads not served here", labels=("reason",)
    )
    for reason, count in stats.misses.items():
        misses.add_metric([reason], count)
    yield misses
    yield _gauge("cache_bytes", "Bytes of lines", stats.bytes)
    yield _gauge("cache_max_bytes", "How many there may be", stats.max_bytes)
    yield _gauge("cache_dirty_bytes", "Bytes that Redis does not have", stats.dirty_bytes)
    yield _gauge("cache_kept_bytes", "Bytes kept for the safety of others", stats.kept_bytes)
    yield _gauge(
        "cache_oldest_dirty_seconds", "Since when a value waits", stats.oldest_dirty_ms / 1_000
    )
    yield _gauge("cache_settled", "Whether the crash of one node loses nothing", stats.settled)
    yield _counter("cache_hits", "Reads served here", stats.hits)
    yield _counter("cache_snoops", "Lines that another node read", stats.snoops)
    yield _counter("cache_invalidations", "Lines that another node wrote", stats.invalidations)
    yield _counter("cache_write_backs", "Values written to Redis", stats.write_backs)
    yield _counter("cache_evictions", "Lines that had to go for want of room", stats.evictions)
    yield _counter("cache_dropped", "Values lost with a lease (local durability)", stats.dropped)


def _counter(name: str, what: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"distsync_{name}", what, value=float(value))


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"distsync_{name}", what, value=float(value))


def _locks(counts: Counts) -> Iterator[Metric]:
    yield _gauge("locks_held", "Locks that are held", counts.locks)
    yield _gauge("lock_grants", "Grants; a shared lock may have many", counts.grants)
    yield _gauge("lock_waiters", "Requests waiting for locks", counts.waiting_requests)
    yield _gauge("sessions", "Open sessions", counts.sessions)
    yield _gauge("remembered_requests", "Requests whose retry is recognised", counts.requests)


def _consensus(status: NodeStatus) -> Iterator[Metric]:
    role = GaugeMetricFamily("distsync_raft_role", "1 for the node's role", labels=("role",))
    for name in ROLES:
        role.add_metric([name], float(status.role == name))
    yield role
    yield _gauge("raft_term", "Current term", status.term)
    yield _gauge("raft_commit_index", "Newest index known to be committed", status.commit_index)
    yield _gauge("raft_applied_index", "Newest index applied here", status.applied_index)
    yield _gauge("raft_config_index", "Index of the membership", status.configuration.index)
    yield _gauge("raft_has_leader", "1 while a leader is known", status.leader is not None)
    yield CounterMetricFamily(
        "distsync_raft_leader_changes",
        "Times this node saw another leader",
        value=status.leader_changes,
    )


def _members(status: NodeStatus) -> Iterator[Metric]:
    configuration = status.configuration
    members = GaugeMetricFamily("distsync_raft_members", "Members", labels=("kind",))
    members.add_metric(["voter"], len(configuration.voters))
    members.add_metric(["learner"], len(configuration.learners))
    yield members
    match = GaugeMetricFamily(
        "distsync_raft_match_index", "Replicated up to here, per member", labels=("member",)
    )
    contact = GaugeMetricFamily(
        "distsync_raft_last_contact_seconds", "Since a member answered", labels=("member",)
    )
    for member in configuration.members:
        progress = status.progress.get(member.id)
        if progress is None:
            continue
        match.add_metric([member.name], progress.match_index)
        if progress.last_contact_ms is not None:
            contact.add_metric([member.name], progress.last_contact_ms / 1000)
    yield match
    yield contact


class Metrics:
    """A registry of its own, so that several nodes fit in one process."""

    def __init__(self, *collectors: Collector) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        for collector in collectors:
            self._registry.register(collector)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text of all metrics and its content type."""
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type
