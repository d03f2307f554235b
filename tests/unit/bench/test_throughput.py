"""Which rounds count, and which figures are held against which."""

from __future__ import annotations

from bench.arithmetic import Ratio
from bench.load import LoadResult
from bench.throughput import Point, counts, ratios, summarise


def a_round(pairs_per_s: float, **changes: object) -> LoadResult:
    fields: dict[str, object] = {
        "clients": 64,
        "window_s": 1.0,
        "pairs": int(pairs_per_s),
        "pairs_per_s": pairs_per_s,
        "p50_ms": 1000 / pairs_per_s,
        "p99_ms": 2000 / pairs_per_s,
        "errors": {},
        "warmup_errors": {},
        "load_cpu_share": 0.3,
        "void": False,
        "server_cpu_s": [0.5, 0.2, 0.2],
        "cpu_us_per_pair": 900_000 / pairs_per_s,
        **changes,
    }
    return LoadResult(**fields)  # type: ignore[arg-type]


def a_point(variant: str, pairs_per_s: float, *, clients: int = 64) -> Point:
    return summarise(variant, "leader", clients, [a_round(pairs_per_s)])


def ratio_named(found: list[Ratio], text: str) -> Ratio:
    (ratio,) = [ratio for ratio in found if ratio.name.endswith(text)]
    return ratio


def test_a_point_is_the_median_of_its_rounds() -> None:
    point = summarise("x", "leader", 64, [a_round(900), a_round(1000), a_round(5000)])
    assert point.pairs_per_s == 1000
    assert point.rounds_not_counted == 0


def test_a_void_round_does_not_count() -> None:
    void = a_round(9000, void=True, load_cpu_share=0.9)
    point = summarise("x", "leader", 64, [a_round(1000), void])
    assert point.pairs_per_s == 1000
    assert point.rounds_not_counted == 1
    assert point.load_cpu_share == 0.9


def test_a_round_counts_with_one_percent_of_errors_and_not_with_more() -> None:
    assert counts(a_round(1000, errors={"acquire: timeout": 10}))
    assert not counts(a_round(1000, errors={"acquire: timeout": 6, "release: timeout": 5}))


def test_a_point_whose_rounds_are_all_void_gives_no_ratio() -> None:
    points = [
        summarise("distsync", "leader", 64, [a_round(9000, void=True, load_cpu_share=0.9)]),
        a_point("etcd-lock", 1000),
    ]
    ratio = ratio_named(ratios(points), "64 clients: over etcd's lock service")
    assert points[0].pairs_per_s is None
    assert ratio.ratio is None
    assert ratio.met is None


def test_the_faster_form_of_etcd_is_the_one_to_beat() -> None:
    points = [
        a_point("distsync", 3000),
        a_point("etcd-lock", 1000),
        a_point("etcd-txn", 2000),
        a_point("distsync", 500, clients=1),
        a_point("etcd-lock", 250, clients=1),
        a_point("etcd-txn", 400, clients=1),
    ]
    found = ratios(points)
    assert ratio_named(found, "64 clients: over etcd's lock service").ratio == 3.0
    faster = ratio_named(found, "64 clients: over the faster form of etcd")
    assert faster.ratio == 1.5
    assert faster.met is False
    p50 = ratio_named(found, "1 client: over the faster form of etcd")
    assert p50.ratio == 0.8
    assert p50.met is False


def test_the_faster_form_is_unknown_while_one_form_has_no_figure() -> None:
    points = [a_point("distsync", 3000), a_point("etcd-lock", 1000)]
    assert ratio_named(ratios(points), "64 clients: over the faster form of etcd").ratio is None
