"""Which figures of queues are held against which."""

from __future__ import annotations

import pytest

from bench.arithmetic import Ratio
from bench.load import LoadResult
from bench.peers import PeerRound
from bench.queue_throughput import (
    BACKLOG,
    BATCH_CLIENTS,
    LIBRARIES,
    MOST_CLIENTS,
    OURS,
    RAW,
    RAW_CLIENTS,
    QueuePoint,
    QueueRound,
    Scenario,
    of_load,
    of_peer,
    ratios,
    summarise,
)


def a_round(messages_per_s: float, **changes: object) -> QueueRound:
    fields: dict[str, object] = {
        "messages": int(messages_per_s),
        "messages_per_s": messages_per_s,
        "p50_ms": 1.0,
        "p99_ms": 2.0,
        "nodes_cpu_us": 300.0,
        "redis_cpu_us": 100.0,
        "load_cpu_us": 50.0,
        "load_cpu_share": 0.3,
        "void": False,
        **changes,
    }
    return QueueRound(**fields)  # type: ignore[arg-type]


def a_point(variant: str, scenario: Scenario, clients: int, messages_per_s: float) -> QueuePoint:
    return summarise(variant, scenario, clients, [a_round(messages_per_s)])


def points(**singles: float) -> list[QueuePoint]:
    return [
        a_point(OURS, "singles", MOST_CLIENTS, 3_000),
        a_point(OURS, "batches", BATCH_CLIENTS, 24_000),
        a_point(RAW, "singles", RAW_CLIENTS, 12_000),
        a_point(RAW, "batches", RAW_CLIENTS, 60_000),
        *(a_point(name, "singles", MOST_CLIENTS, rate) for name, rate in singles.items()),
    ]


ALL = dict.fromkeys(LIBRARIES, 1_000.0)


def ratio_named(found: list[Ratio], *texts: str) -> Ratio:
    (ratio,) = [ratio for ratio in found if all(text in ratio.name for text in texts)]
    return ratio


def test_the_best_python_library_is_the_one_to_beat_at_whatever_suits_it() -> None:
    found = ratios([*points(**ALL), a_point("saq", "backlog", BACKLOG, 2_000)])
    ratio = ratio_named(found, "64 clients: over the best Python library")
    assert (ratio.ratio, ratio.goal, ratio.met) == (1.5, 1.0, True)


def test_bullmq_is_no_python_library() -> None:
    found = ratios(points(**{**ALL, "bullmq": 6_000.0}))
    assert ratio_named(found, "64 clients: over the best Python library").ratio == 3.0
    assert ratio_named(found, "over BullMQ").ratio == 0.5


def test_batches_are_held_against_five_times_the_best_of_all() -> None:
    found = ratios(points(**{**ALL, "bullmq": 6_000.0}))
    assert ratio_named(found, "over 5 times").ratio == pytest.approx(24_000 / 30_000)
    assert ratio_named(found, "over 5 times").met is False


def test_batches_are_held_against_the_raw_limit_where_that_is_lower() -> None:
    found = ratios(points(**{**ALL, "bullmq": 9_000.0}))
    assert ratio_named(found, "over 5 times").ratio == pytest.approx(24_000 / 36_000)


def test_the_best_is_unknown_while_a_library_has_no_figure() -> None:
    without = {name: rate for name, rate in ALL.items() if name != "bullmq"}
    found = ratios(points(**without))
    assert ratio_named(found, "64 clients: over the best Python library").ratio == 3.0
    assert ratio_named(found, "over 5 times").ratio is None
    assert ratio_named(ratios(points(saq=1_000.0)), "64 clients: over the best").ratio is None


def test_a_round_that_does_not_count_is_left_out() -> None:
    failed = a_round(5_000, errors={"pop: 503": 51})
    void = a_round(9_000, void=True)
    point = summarise(OURS, "singles", 64, [a_round(1_000), failed, void])
    assert point.messages_per_s == 1_000
    assert point.rounds_not_counted == 2
    assert point.errors == 51


def test_cpu_of_nodes_redis_and_load_is_told_apart() -> None:
    result = LoadResult(
        clients=64,
        window_s=2.0,
        pairs=1_000,
        pairs_per_s=500.0,
        p50_ms=1.0,
        p99_ms=2.0,
        errors={},
        warmup_errors={},
        load_cpu_share=0.25,
        void=False,
        server_cpu_s=[0.1, 0.2, 0.3, 0.4],
        cpu_us_per_pair=1_000.0,
    )
    found = of_load(result)
    assert found.nodes_cpu_us == pytest.approx(600)
    assert found.redis_cpu_us == pytest.approx(400)
    assert found.load_cpu_us == pytest.approx(500)


def test_cpu_of_a_library_is_that_of_its_two_processes() -> None:
    result = PeerRound(
        messages=1_000,
        window_s=2.0,
        p50_ms=1.0,
        p99_ms=2.0,
        redis_cpu_s=0.4,
        load_cpu_s=1.5,
        harness_cpu_share=0.02,
        void=False,
    )
    found = of_peer(result)
    assert (found.messages_per_s, found.nodes_cpu_us) == (500.0, 0.0)
    assert found.redis_cpu_us == pytest.approx(400)
    assert found.load_cpu_us == pytest.approx(1_500)
