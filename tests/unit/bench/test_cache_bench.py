"""What caches are asked in the benchmark, and which figures are held against which."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
from pathlib import Path

import msgspec
import pytest

from bench.arithmetic import Ratio
from bench.cache_dialects import VALUE, make_cache_dialect
from bench.cache_faults import MIB, CacheFailover, Memory
from bench.cache_faults import ratios as fault_ratios
from bench.cache_load import measure, operations
from bench.cache_throughput import (
    APP,
    ETCD,
    MOST_CLIENTS,
    OURS,
    REDIS_PY,
    CachePoint,
    ratios,
    summarise,
)
from bench.load import LoadResult, LoadSpec
from bench.wire import Answer
from distsync_node.api.cache_schemas import PutRequest

ROOT = Path(__file__).parents[3]


def spec(scenario: str, **changes: object) -> LoadSpec:
    fields: dict[str, object] = {
        "dialect": f"http:{scenario}",
        "targets": [("127.0.0.1", 1)],
        "clients": 2,
        "run_id": "run",
        "duration_s": 0.2,
        "warmup_s": 0.01,
        "shared_names": 5,
        **changes,
    }
    return LoadSpec(**fields)  # type: ignore[arg-type]


def test_distsync_is_asked_in_its_own_schema() -> None:
    dialect = make_cache_dialect("http")
    head, _, body = dialect.write("a.1").partition(b"\r\n\r\n")
    assert head.startswith(b"PUT /cache/a.1 HTTP/1.1\r\n")
    put = msgspec.json.decode(body, type=PutRequest)
    assert msgspec.json.decode(put.value) == VALUE.decode()
    assert dialect.read("a.1").startswith(b"GET /cache/a.1 HTTP/1.1\r\n")


@pytest.mark.parametrize("kind", ["http", "etcd"])
def test_a_read_that_brings_no_value_is_none(kind: str) -> None:
    dialect = make_cache_dialect(kind)
    value = VALUE if kind == "http" else base64.b64encode(VALUE)
    assert dialect.was_read(Answer(200, b'{"value":"%s"}' % value))
    assert not dialect.was_read(Answer(200, b'{"header":{}}'))
    assert not dialect.was_read(Answer(404, b'{"value":"%s"}' % value))
    assert dialect.was_written(Answer(200, b"{}"))
    assert not dialect.was_written(Answer(503, b"{}"))


def test_scenarios_read_and_write_what_they_say() -> None:
    def first(scenario: str, index: int, count: int) -> list[tuple[bool, str]]:
        return list(itertools.islice(operations(spec(scenario), scenario, index), count))

    known = {f"run.{number}" for number in range(5)}
    hits = first("hits", 0, 200)
    assert {key for _, key in hits} == known
    assert not any(writes for writes, _ in hits)
    mixed = first("mixed", 0, 2_000)
    assert {key for _, key in mixed} == known
    assert 150 < sum(writes for writes, _ in mixed) < 250
    assert set(first("rewrite", 1, 50)) == {(True, "run.own-1")}
    new = first("first", 0, 50) + first("first", 1, 50)
    assert len(set(new)) == 100
    assert all(writes for writes, _ in new)
    with pytest.raises(ValueError, match="scenario"):
        first("none", 0, 1)


async def test_the_load_counts_what_was_answered_and_what_was_not() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in itertools.count():
            try:
                await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                break
            body = b'{"value":"%s"}' % VALUE if number % 10 else b"{}"
            writer.write(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        result = await measure(spec("hits", targets=[listening.sockets[0].getsockname()]))
    assert result.pairs > 0
    assert set(result.errors) == {"pop: 200"}


def a_point(variant: str, scenario: str, clients: int, rate: float, **more: object) -> CachePoint:
    fields: dict[str, object] = {
        "clients": clients,
        "window_s": 1.0,
        "pairs": int(rate),
        "pairs_per_s": rate,
        "p50_ms": 1_000 / rate,
        "p99_ms": 1.0,
        "errors": {},
        "warmup_errors": {},
        "load_cpu_share": 0.5,
        "void": False,
        "server_cpu_s": [0.1],
        "cpu_us_per_pair": 10.0,
        **more,
    }
    return summarise(variant, scenario, clients, [LoadResult(**fields)])  # type: ignore[arg-type]


def found(lines: list[Ratio], *words: str) -> Ratio:
    (line,) = [one for one in lines if all(word in one.name for word in words)]
    return line


def test_hits_are_held_against_the_application_and_etcd() -> None:
    lines = ratios(
        [
            *(a_point(OURS, "hits", clients, 6_000) for clients in (1, MOST_CLIENTS)),
            *(a_point(APP, "hits", clients, 3_000) for clients in (1, MOST_CLIENTS)),
            a_point(ETCD, "hits", MOST_CLIENTS, 3_000),
        ]
    )
    over_app = next(one for one in lines if one.name.endswith("distsync over fastapi"))
    assert (over_app.ratio, over_app.goal, over_app.met) == (2.0, 3.0, False)
    assert found(lines, "hits/s", "over etcd").met
    quicker = next(
        one for one in lines if one.name == "p50 of hits, 1 client: distsync over fastapi"
    )
    assert quicker.met
    assert found(lines, "p50 of hits", "over etcd").ratio is None


def test_the_figures_that_are_shown_follow_from_the_points_that_were_kept() -> None:
    kept = json.loads((ROOT / "tests/bench/results/cache.json").read_bytes())
    points = [point for point in kept["points"] if "variant" in point]
    lines = ratios(msgspec.convert(points, list[CachePoint]))
    shown = (ROOT / "docs/benchmarks.md").read_text()
    assert len(lines) > 20
    missing = [one for one in lines if f"| {one.name} | {one.ratio:.3g} |" not in shown]
    assert missing == []


def test_mirrored_rewrites_are_held_against_write_through() -> None:
    lines = ratios(
        [
            *(a_point("mirrored", "rewrite", clients, 900) for clients in (1, MOST_CLIENTS)),
            *(a_point("write_through", "rewrite", clients, 1_000) for clients in (1, MOST_CLIENTS)),
        ]
    )
    assert found(lines, "rewrites/s", "mirrored over write_through").met is False
    assert found(lines, "p50 of rewrite", "mirrored over write_through").met is False
    assert found(lines, "p50 of first", "mirrored over write_through").met is None


def test_a_load_client_at_its_limit_voids_a_round_of_a_server_but_not_of_redis_py() -> None:
    void = {"void": True, "load_cpu_share": 0.99}
    assert a_point(OURS, "hits", 1, 100, **void).operations_per_s is None
    assert a_point(REDIS_PY, "hits", 1, 100, **void).operations_per_s == 100


def test_a_value_that_is_not_served_or_is_lost_misses_the_goal() -> None:
    good = CacheFailover(who="home", values=9, times_s=[1.0, 3.0], lost=0)
    bad = CacheFailover(who="owner", values=9, times_s=[1.0, None], lost=2)
    lines = fault_ratios([good, bad], None, full=True)
    assert found(lines, "home", "seconds").met
    assert found(lines, "owner", "seconds").met is None
    assert found(lines, "lost", "owner").met is False
    assert found(lines, "lost", "home").met


def test_memory_is_the_growth_of_the_largest_node() -> None:
    held = Memory(max_bytes=10 * MIB, values_mib=100, before_mib=[50, 50], largest_mib=[61.0, 63.0])
    assert found(fault_ratios([], held, full=False), "memory").met is None
    line = found(fault_ratios([], held, full=True), "memory")
    assert line.ratio == pytest.approx(1.3)
    assert line.met is False
