"""The cache over HTTP on three real nodes and a real Redis."""

from __future__ import annotations

import itertools
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from process.cache_calls import Answer, delete, get, path_of, post, put, put_bytes, send
from process.cluster import Cluster
from process.running import acquire, eventually


@pytest.fixture(scope="module")
def cluster(cluster: Cluster) -> Cluster:
    for url in cluster.urls:  # the first calls are answered too, once a node is ready
        assert put(url, "warm", 1).status == 200
    return cluster


def state(url: str, key: str) -> str:
    """The state of the line at a node, which is not asked to read it."""
    page = send(url, "GET", "/debug/cache/lines?limit=1000").json
    return next((line["state"] for line in page["lines"] if line["key"] == key), "I")


def problem(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status, answer.json["code"]


def test_what_is_put_at_one_node_is_read_at_every_other(cluster: Cluster) -> None:
    for number, url in enumerate(cluster.urls):
        written = put(url, "seen", {"n": number})
        assert written.status == 200, written
        for other in cluster.urls:
            answer = get(other, "seen")
            assert (answer.status, answer.json["value"]) == (200, {"n": number})
            assert answer.json["version"] == written.json["version"]
            assert answer.headers["etag"] == f'"{written.json["version"]}"'


def test_a_reader_alone_has_e_two_have_s_and_a_writer_m_while_others_have_i(
    cluster: Cluster,
) -> None:
    one, two, three = cluster.urls
    put(one, "mesi", 1)
    eventually(lambda: state(one, "mesi") == "E", what="the write-back")
    delete(two, "mesi")
    eventually(lambda: state(two, "mesi") == "E", what="the write-back")
    assert put(three, "mesi", 2).json["state"] == "M"
    eventually(lambda: state(three, "mesi") == "E", what="the write-back")
    assert (state(one, "mesi"), state(two, "mesi")) == ("I", "I")

    assert get(one, "mesi").json["state"] == "S"
    assert get(three, "mesi").json["state"] == "S"

    assert put(one, "mesi", 3).json["state"] == "M"
    assert (state(two, "mesi"), state(three, "mesi")) == ("I", "I")


def test_a_value_that_is_known_is_not_sent_again(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    put(one, "known", "old")
    etag = get(two, "known").headers["etag"]
    for _ in range(2):  # by its home, then from the line that is here
        same = get(two, "known", if_none_match=etag)
        assert (same.status, same.body, same.headers["etag"]) == (304, b"", etag)
    put(one, "known", "new")
    assert get(two, "known", if_none_match=etag).json["value"] == "new"


def test_a_hit_says_so_and_names_the_home(cluster: Cluster) -> None:
    put(cluster.urls[0], "hit", 1)
    homes = {get(url, "hit").headers["distsync-owner"] for url in cluster.urls}
    assert len(homes) == 1
    assert homes < set(cluster.urls)
    assert {get(url, "hit").headers["distsync-cache"] for url in cluster.urls} == {"hit"}


@pytest.mark.parametrize("condition", ["", "current", "other"])
@pytest.mark.parametrize("kind", ["json", "bytes"])
def test_the_short_and_the_long_way_give_the_same_answer(
    cluster: Cluster, kind: str, condition: str
) -> None:
    url, key = cluster.urls[0], f"ways/{kind} \u00e9"
    if kind == "json":
        put(url, key, {"a": [1, "\u00e9"]})
    else:
        put_bytes(url, key, b"\0\xff")
    eventually(lambda: state(url, key) == "E", what="the write-back")
    etag = get(url, key).headers["etag"]
    asked = {"if_none_match": etag if condition == "current" else '"1.1"'} if condition else {}
    short = get(url, key, **asked)
    long = get(url, key, connection="close", **asked)
    assert (short.status, short.body) == (long.status, long.body)
    own = {"x-request-id", "connection"}
    assert {k: v for k, v in short.headers.items() if k not in own} == {
        k: v for k, v in long.headers.items() if k not in own
    }


def test_bytes_come_back_as_they_were(cluster: Cluster) -> None:
    one, two, three = cluster.urls
    data = bytes(range(256)) * 40
    assert put_bytes(one, "bytes", data, ttl_ms=600_000).status == 200
    for url in (two, two):
        answer = get(url, "bytes")
        assert (answer.status, answer.body) == (200, data)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert 0 < int(answer.headers["distsync-ttl-ms"]) <= 600_000
    as_json = get(three, "bytes", accept="application/json").json
    assert (as_json["encoding"], b64decode(as_json["value"])) == ("base64", data)
    body = {"value": b64encode(data).decode(), "encoding": "base64"}
    assert post(two, "/cache/bytes", body, method="PUT").status == 200
    assert get(one, "bytes").body == data


def test_json_comes_back_as_the_text_it_was(cluster: Cluster) -> None:
    text = b'{"value": {"a":  1.0, "b": 123456789012345678901234567890, "c": "\xc3\xa9"}}'
    headers = {"content-type": "application/json"}
    assert send(cluster.urls[0], "PUT", "/cache/text", text, headers).status == 200
    assert text[10:-1] in get(cluster.urls[1], "text").body


def test_a_write_under_a_version_is_made_once(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    delete(one, "cas")
    first = put(one, "cas", 1, if_version="0.0").json["version"]
    assert problem(put(two, "cas", 2, if_version="0.0")) == (412, "version_mismatch")
    assert put(two, "cas", 2, if_version=first).status == 200
    refused = put(one, "cas", 3, if_version=first)
    assert refused.json["version"] == get(one, "cas").json["version"]
    assert problem(delete(one, "cas", if_version=first)) == (412, "version_mismatch")


def test_a_write_with_if_none_match_is_made_only_where_there_is_no_value(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    delete(one, "fresh")
    headers = {"content-type": "application/octet-stream", "if-none-match": "*"}
    assert send(one, "PUT", path_of("fresh"), b"first", headers).status == 200
    assert problem(send(two, "PUT", path_of("fresh"), b"2", headers)) == (412, "version_mismatch")
    assert get(two, "fresh").body == b"first"
    other = send(two, "PUT", path_of("fresh"), b"2", {**headers, "if-none-match": '"7.12"'})
    assert (problem(other), other.json["field"]) == ((422, "bad_request"), "If-None-Match")
    both = send(two, "PUT", path_of("fresh", if_version="7.12"), b"2", headers)
    assert (problem(both), both.json["field"]) == ((422, "bad_request"), "If-None-Match")
    removal = send(two, "DELETE", path_of("fresh"), None, {"if-none-match": "*"})
    assert problem(removal) == (412, "version_mismatch")
    assert delete(two, "fresh").status == 200
    assert send(two, "PUT", path_of("fresh"), b"second", headers).status == 200


def test_what_is_deleted_or_expired_is_not_found_anywhere(cluster: Cluster) -> None:
    one, two, three = cluster.urls
    put(one, "gone", 1)
    assert get(two, "gone").status == 200
    assert delete(three, "gone").status == 200
    assert [problem(get(url, "gone")) for url in cluster.urls] == [(404, "not_found")] * 3
    put(one, "brief", 1, ttl_ms=300)
    for url in cluster.urls:
        eventually(lambda url=url: get(url, "brief").status == 404, what="the end of its time")


def test_a_fence_keeps_out_who_has_lost_the_lock(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    old = acquire(one, "guard")
    assert put(one, "fenced", 1, fence={"lock": "guard", "token": old}).status == 200
    post(one, "/lock/release", {"name": "guard", "owner": "somebody", "token": old})
    new = acquire(two, "guard", owner="another")
    assert put(two, "fenced", 2, fence={"lock": "guard", "token": new}).status == 200
    assert problem(put(one, "fenced", 3, fence={"lock": "guard", "token": old})) == (409, "fenced")
    assert problem(put(one, "other", 3, fence={"lock": "guard", "token": old})) == (409, "fenced")
    assert get(one, "fenced").json["value"] == 2


def test_the_token_of_a_shared_grant_fences_nothing(cluster: Cluster) -> None:
    for number, url in enumerate(cluster.urls):  # who leads, and who does not
        key = lock = f"shared {number}"
        body = {"name": lock, "owner": "a", "mode": "shared", "ttl_ms": 60_000}
        token = post(url, "/lock/acquire", body).json["token"]
        refused = put(url, key, 1, fence={"lock": lock, "token": token})
        assert (refused.status, refused.json["field"]) == (422, "fence.token")
        query = {"fence_lock": lock, "fence_token": token}
        assert put_bytes(url, key, b"1", **query).status == 422
        assert delete(url, key, **query).status == 422
        assert get(url, key).status == 404


def test_values_of_a_tag_are_gone_at_once_everywhere(cluster: Cluster) -> None:
    one, two, three = cluster.urls
    put(one, "tagged", 1, tags=["a", "b"])
    put(two, "other-tag", 1, tags=["b"])
    assert [get(url, "tagged").status for url in cluster.urls] == [200] * 3
    assert post(three, "/cache/invalidate_tag", {"tag": "a"}).status == 200
    assert [get(url, "tagged").status for url in cluster.urls] == [404] * 3
    assert get(three, "other-tag").status == 200
    assert put(two, "tagged", 2, tags=["a"], if_version="0.0").status == 200
    assert [get(url, "tagged").json["value"] for url in cluster.urls] == [2] * 3


def test_a_batch_answers_each_item_by_itself(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    put(one, "b3", 3)
    many = {
        "set": [{"key": f"many{i}", "value": i} for i in range(200)]
        + [{"key": "b3", "value": 4, "if_version": "0.0"}],
        "delete": ["b9"],
        "get": [*(f"many{i}" for i in range(200)), "b3", "b9"],
    }
    done = post(two, "/cache/batch", many).json
    assert [done["get"][f"many{i}"]["value"] for i in range(200)] == list(range(200))
    assert done["set"][-1]["error"]["code"] == "version_mismatch"
    assert done["get"]["b3"]["value"] == 3
    assert done["get"]["b9"]["error"]["code"] == "not_found"
    assert done["delete"][0]["key"] == "b9"


def test_one_of_a_hundred_computes_and_another_takes_over_when_it_dies(cluster: Cluster) -> None:
    wanted = {"key": "slow", "wait_ms": 20_000, "lease_ms": 1_500}
    first = post(cluster.urls[0], "/cache/compute", wanted).json
    assert first["status"] == "compute"
    patient = {**wanted, "lease_ms": 60_000}  # so that the second one is the last
    with ThreadPoolExecutor(100) as pool:
        waiting = [
            pool.submit(post, cluster.urls[i % 3], "/cache/compute", patient) for i in range(100)
        ]

        def second() -> dict[str, Any] | None:
            """The first one never puts anything."""
            done = [one.result().json for one in waiting if one.done()]
            return next((one for one in done if one["status"] == "compute"), None)

        token = eventually(second, what="a second one to compute")["token"]
        late = put(cluster.urls[0], "slow", "late", compute_token=first["token"])
        assert problem(late) == (409, "compute_lost")
        assert put(cluster.urls[1], "slow", "value", compute_token=token).status == 200
        told = [one.result().json for one in waiting]
    assert [one["status"] for one in told].count("compute") == 1
    assert {one["value"] for one in told if one["status"] == "value"} == {"value"}


def test_what_was_computed_from_older_data_is_not_stored(cluster: Cluster) -> None:
    """Whether the key or a tag was invalidated meanwhile, on any node; or the key written."""
    one, two, _ = cluster.urls

    def begun(key: str, **more: Any) -> str:
        wanted = {"key": key, "wait_ms": 0, **more}
        told = post(one, "/cache/compute", wanted).json
        assert told["status"] == "compute", told
        return str(told["token"])

    token = begun("never-written")
    assert send(two, "DELETE", "/cache/never-written").status == 200
    assert problem(put(one, "never-written", "old", compute_token=token)) == (409, "compute_lost")
    token = begun("never-written")
    assert put(two, "never-written", "newer").status == 200
    assert problem(put(one, "never-written", "old", compute_token=token)) == (409, "compute_lost")
    assert send(one, "GET", "/cache/never-written").json["value"] == "newer"

    token = begun("computed-tagged", tags=["prices"])
    assert post(two, "/cache/invalidate_tag", {"tag": "prices"}).status == 200
    late = put(one, "computed-tagged", "old", tags=["prices"], compute_token=token)
    assert problem(late) == (409, "compute_lost")
    token = begun("computed-tagged", tags=["prices"])
    assert put(one, "computed-tagged", "new", tags=["prices"], compute_token=token).status == 200
    assert send(two, "GET", "/cache/computed-tagged").json["value"] == "new"


def test_who_gives_up_lets_the_next_compute_at_once(cluster: Cluster) -> None:
    wanted = {"key": "given-up", "wait_ms": 0, "lease_ms": 60_000}
    first = post(cluster.urls[0], "/cache/compute", wanted).json
    assert problem(post(cluster.urls[1], "/cache/compute", wanted)) == (409, "compute_timeout")
    path = f"/cache/given-up/compute?token={first['token']}"
    assert send(cluster.urls[2], "DELETE", path).json == {"given_up": True}
    assert post(cluster.urls[1], "/cache/compute", wanted).json["status"] == "compute"


@pytest.mark.parametrize(
    ("key", "fields", "field"),
    [
        ("k" * 1025, {"value": 1}, "key"),
        ("\0tag:x", {"value": 1}, "key"),
        ("k", {"value": 1, "ttl_ms": 0}, "ttl_ms"),
        ("k", {"value": 1, "if_version": "x"}, "if_version"),
        ("k", {"value": 1, "tags": ["t"] * 17}, "tags"),
        ("k", {"value": 1, "encoding": "base64"}, "value"),
        ("k", {"value": "x" * (1 << 20)}, "value"),
        ("k", {}, "value"),
    ],
)
def test_what_is_wrong_with_a_request_is_named(
    cluster: Cluster, key: str, fields: dict[str, Any], field: str
) -> None:
    answer = post(cluster.urls[0], path_of(key), fields, method="PUT")
    assert 400 <= answer.status < 500
    assert answer.json["field"] == field


def test_a_node_pages_its_lines_and_counts_what_it_does(cluster: Cluster) -> None:
    one = cluster.urls[0]
    for i in range(5):
        put(one, f"page{i}", i)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = send(one, "GET", f"/debug/cache/lines?limit=3&after={quote(after)}").json
        seen += [line["key"] for line in page["lines"]]
        after = page["next"]
    assert seen == sorted(set(seen))
    assert {f"page{i}" for i in range(5)} <= set(seen)
    before = send(one, "GET", "/cache").json
    get(one, "page0")
    after_hit = send(one, "GET", "/cache").json
    assert after_hit["hits"] == before["hits"] + 1
    assert after_hit["bytes"] <= after_hit["max_bytes"]


def metrics(url: str) -> dict[str, float]:
    """The metrics of the cache of a node, `name{labels}` without `distsync_cache_`."""
    text = send(url, "GET", "/metrics").body.decode()
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
    ours = "distsync_cache_"
    return {name.removeprefix(ours): float(value) for name, value in lines if name.startswith(ours)}


def key_of(home: str, urls: list[str], name: str) -> str:
    """A key with that home. Where clients reach it takes a moment to spread."""
    keys = itertools.cycle(f"{name}{number}" for number in range(50))

    def found() -> str:
        key = next(keys)
        return key if put(urls[0], key, 0).headers.get("distsync-owner") == home else ""

    return eventually(found, what=f"a key of {home}")


def gained(url: str, *, by: Callable[[], object]) -> dict[str, float]:
    """What a node counted meanwhile."""
    before = metrics(url)
    by()
    return {
        name: value - before[name]
        for name, value in metrics(url).items()
        if name.endswith(("}", "_total"))
        if value != before[name] and not name.startswith(("lines", "write_backs"))
    }


def test_homes_snoop_and_invalidate_over_http(cluster: Cluster) -> None:
    one, two, three = cluster.urls
    key = key_of(one, cluster.urls, "asked")

    def was_asked(path: str, call: Callable[[], Answer]) -> bool:
        """Whether the home asked the second node, which owns the line, for the third one's call.

        By chance that may have gone in the answer to another message.
        """
        put(two, key, 1)
        before = cluster.proxies.requests.copy()
        assert call().status == 200
        asked = cluster.proxies.requests - before
        assert asked["n1", "n3", path] == 0
        return asked["n1", "n2", path] == 1

    snoop, invalidate = "/cache/handle_snoop_read", "/cache/handle_invalidate"
    eventually(lambda: was_asked(snoop, lambda: get(three, key)), what="a snoop")
    eventually(lambda: was_asked(invalidate, lambda: put(three, key, 2)), what="an invalidation")


@pytest.mark.parametrize("home", [0, 1, 2])
def test_metrics_count_hits_misses_snoops_and_invalidations(cluster: Cluster, home: int) -> None:
    one, two, _ = cluster.urls
    key = key_of(cluster.urls[home], cluster.urls, f"metric-{home}-")
    assert gained(two, by=lambda: get(two, key)) == {'misses_total{reason="absent"}': 1}
    assert gained(two, by=lambda: get(two, key)) == {"hits_total": 1}
    assert gained(two, by=lambda: put(one, key, 2)) == {"invalidations_total": 1}
    assert gained(one, by=lambda: get(two, key)) == {"snoops_total": 1}
    put(one, key, 3)
    assert gained(two, by=lambda: get(two, key)) == {'misses_total{reason="invalidated"}': 1}

    def is_copied() -> bool:
        put(one, f"{key}-brief", 1, ttl_ms=500)
        return get(two, f"{key}-brief").status == 200

    eventually(is_copied, what="a copy that is made before the end of its time")
    eventually(lambda: get(one, f"{key}-brief").status == 404, what="the end of its time")
    expired = gained(two, by=lambda: get(two, f"{key}-brief"))
    assert expired == {'misses_total{reason="expired"}': 1}


def test_metrics_tell_lines_bytes_and_what_redis_does_not_have(cluster: Cluster) -> None:
    one, two, _ = cluster.urls
    keys = (f"sized{number}" for number in itertools.count())

    def unwritten() -> tuple[str, list[dict[str, float]]]:
        """A key that Redis does not have yet and what every node tells in that short time."""
        key = next(keys)
        before = metrics(one)
        put(one, key, "x" * 50_000)
        after = metrics(one)
        assert after['lines{state="M"}'] >= 1
        assert after["bytes"] - before["bytes"] >= 50_000
        assert after["max_bytes"] > after["bytes"]
        every = [metrics(url) for url in cluster.urls]
        assert sum(one["dirty_bytes"] for one in every) >= 50_000
        assert max(one["oldest_dirty_seconds"] for one in every) > 0
        return key, every

    key, every = eventually(unwritten, what="what Redis does not have")
    written = sum(one["write_backs_total"] for one in every)

    def is_clean() -> bool:
        every = [metrics(url) for url in cluster.urls]
        return all(one["settled"] == 1 and one["dirty_bytes"] == 0 for one in every)

    eventually(is_clean, what="all in Redis")
    assert sum(metrics(url)["write_backs_total"] for url in cluster.urls) > written
    get(two, key)
    assert state(one, key) == state(two, key) == "S"
    assert metrics(two)['lines{state="S"}'] >= 1
