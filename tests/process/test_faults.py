"""Real nodes under kill -9, SIGSTOP and cut links: what clients saw must be linearizable."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from checker.history import Operation
from checker.linearizability import check_history, failures
from checker.models import LockModel
from process.cluster import Cluster, ready_cluster
from process.recorder import Recorder
from process.running import eventually

PAUSE = threading.Event()  # never set: waits are between faults, not for conditions


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ready_cluster(tmp_path) as cluster:
        yield cluster


def assert_linearizable(history: list[Operation]) -> None:
    grants = [
        o for o in history if o.op == "acquire" and (o.result or {}).get("status") == "granted"
    ]
    assert len(grants) >= 20, f"only {len(grants)} grants: the run says nothing"
    bad = failures(check_history(history, LockModel()))
    assert not bad, "\n".join(report.detail for report in bad)


def under(
    cluster: Cluster, fault: Callable[[Cluster, random.Random], None], *, rounds: int, seed: int
) -> None:
    """Run clients while a fault strikes again and again; then heal, and check what they saw."""
    recorder = Recorder(cluster.urls, seed=seed)
    rng = random.Random(seed)
    recorder.start()
    try:
        for _ in range(rounds):
            seen = len(recorder.granted_at)
            fault(cluster, rng)
            cluster.proxies.mend()
            eventually(
                lambda seen=seen: len(recorder.granted_at) > seen + 15,
                what="grants after the fault",
            )
    finally:
        history = recorder.stop()
    assert_linearizable(history)
    cluster.wait_ready()
    cluster.wait_same_index()


def kill_leader(cluster: Cluster, _rng: random.Random) -> None:
    leader = cluster.wait_for_leader()
    cluster.kill(leader)
    cluster.wait_for_leader([name for name in cluster.names if name != leader])
    cluster.start(leader)


def kill_follower(cluster: Cluster, rng: random.Random) -> None:
    leader = cluster.wait_for_leader()
    victim = rng.choice([name for name in cluster.names if name != leader])
    cluster.kill(victim)
    PAUSE.wait(0.5)
    cluster.start(victim)


def kill_all(cluster: Cluster, _rng: random.Random) -> None:
    for name in cluster.names:
        cluster.kill(name)
    cluster.start()
    cluster.wait_for_leader()


def stop_leader(cluster: Cluster, _rng: random.Random) -> None:
    """SIGSTOP past every lease; what was queued at the leader is served by its successor."""
    leader = cluster.wait_for_leader()
    cluster.signal(leader, signal.SIGSTOP)
    try:
        cluster.wait_for_leader([name for name in cluster.names if name != leader])
        PAUSE.wait(2.0)
    finally:
        cluster.signal(leader, signal.SIGCONT)


def isolate_leader(cluster: Cluster, _rng: random.Random) -> None:
    leader = cluster.wait_for_leader()
    cluster.proxies.isolate(leader, cluster.names)
    cluster.wait_for_leader([name for name in cluster.names if name != leader])
    PAUSE.wait(1.0)


def cut_one_way(cluster: Cluster, rng: random.Random) -> None:
    """The leader's requests reach a follower, its answers do not come back; or the reverse."""
    leader = cluster.wait_for_leader()
    other = rng.choice([name for name in cluster.names if name != leader])
    cluster.proxies.cut(leader, other, answers_only=rng.random() < 0.5)
    if rng.random() < 0.5:
        cluster.proxies.cut(other, leader)
    PAUSE.wait(1.5)


FAULTS = [kill_leader, kill_follower, kill_all, stop_leader, isolate_leader, cut_one_way]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_histories_are_linearizable_under(
    fault: Callable[[Cluster, random.Random], None], cluster: Cluster
) -> None:
    under(cluster, fault, rounds=2, seed=7)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_histories_are_linearizable_under_mixed_faults(seed: int, cluster: Cluster) -> None:
    def any_fault(cluster: Cluster, rng: random.Random) -> None:
        rng.choice(FAULTS)(cluster, rng)

    under(cluster, any_fault, rounds=15, seed=seed)
