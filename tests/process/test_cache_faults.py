"""The cache on real nodes under kill -9, SIGSTOP, cut links and a Redis that goes away.

What clients saw must be linearizable key by key, and the cache must serve again. All tests share
one cluster, but for those that change who is in it; each is given it whole.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from checker.history import Operation, write_history
from checker.linearizability import Report, check_history, failures
from distsync_node.cache.scripts import redis_key
from distsync_node.cluster.leases import LeaseOptions
from process.cache_calls import Answer, get, post, put, send
from process.cache_recorder import THROUGH, CacheRecorder
from process.calls import call
from process.cluster import SECRET, Cluster
from process.running import eventually
from redis_server import RedisServer
from sim.cache.model import CacheModel

PAUSE = threading.Event()  # never set: waits are between faults, not for conditions
NODE_LEASE_SECONDS = LeaseOptions().granted_ms / 1_000
SERVED_AFTER = 40
KEYS_A_ROLE = 2
SERVED_AGAIN_SECONDS = 4.0


@contextlib.contextmanager
def running(
    directory: Path, redis: RedisServer, nodes: int = 3, founders: int = 3
) -> Iterator[Cluster]:
    """A cluster whose founders run."""
    options = ["--redis", redis.url]
    for mode in ("local/=local", f"{THROUGH}=write_through"):
        options += ["--cache-durability-of", mode]
    cluster = Cluster(directory, nodes=nodes, founders=founders, options=options)
    try:
        cluster.start(*cluster.names[:founders])
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("nodes"), redis) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    logged = {name: len(shared.log_of(name)) for name in shared.names}
    for name in shared.names:
        if shared.processes[name].poll() is not None:
            shared.start(name)
    wait_serving(shared, shared.names)
    yield shared
    for name in shared.names:
        print(f"--- {name}\n{shared.log_of(name)[logged[name] :][-3_000:]}")


def wait_serving(cluster: Cluster, names: Sequence[str]) -> None:
    """Wait until each of these nodes, which are the ring, serves keys of every part of it."""
    cluster.wait_for_ring(names)
    for name in names:
        for number in range(4 * len(names)):
            eventually(
                lambda name=name, number=number: (
                    put(cluster.url(name), f"warm {number}", 1).status == 200
                ),
                what=f"{name} serves",
            )


def wait_settled(cluster: Cluster) -> None:
    """Wait until no crash of one node loses anything that was acknowledged."""

    def is_settled() -> bool:
        return all(send(url, "GET", "/cache").json["settled"] for url in cluster.urls)

    eventually(is_settled, what="a settled cache")


def unexplained(history: list[Operation]) -> list[Report]:
    """Return the keys whose history no order explains.

    A write of which nobody knows the outcome may never have been done. So an explanation without
    those that nobody saw is one, and found much sooner; only where there is none they are tried.
    """
    seen = {(one.result or {}).get("value") for one in history if one.op == "read"}
    seen |= {one.args["expected"] for one in history if one.op == "compare_and_set"}
    likely = [
        one
        for one in history
        if not one.pending or (one.op != "delete" and one.args.get("value") in seen)
    ]
    doubtful = {report.key for report in failures(check_history(likely, CacheModel()))}
    rest = [one for one in history if one.key in doubtful]
    return list(failures(check_history(rest, CacheModel()))) if rest else []


def under(
    cluster: Cluster,
    fault: Callable[[CacheRecorder], None],
    *,
    rounds: int,
    seed: int,
    directory: Path,
) -> None:
    """Run clients while a fault strikes; then heal, and check what they saw, and see in the end."""
    names = [name for name, process in cluster.processes.items() if process.poll() is None]
    urls = [cluster.url(name) for name in names]
    recorder = CacheRecorder(urls, seed=seed, prefix=f"{directory.name}/")
    recorder.start()
    try:
        for _ in range(rounds):
            eventually(lambda: len(recorder.served_at) > SERVED_AFTER, what="calls served")
            fault(recorder)
            cluster.proxies.mend()
            healed = time.monotonic()
            eventually(
                lambda healed=healed: recorder.served_since(healed) > SERVED_AFTER,
                what="calls served after the fault",
            )
    finally:
        recorder.stop()
    history = recorder.read_everywhere()
    write_history(directory / "history.jsonl", history)
    bad = unexplained(history)
    assert not bad, "\n".join(report.detail for report in bad)
    wait_serving(cluster, names)


def kill_one(cluster: Cluster, _redis: RedisServer, rng: random.Random) -> None:
    """It is what it is of some key, at any moment of a call."""
    victim = rng.choice(cluster.names)
    wait_settled(cluster)
    cluster.kill(victim)
    PAUSE.wait(rng.choice([0.3, 3.0]))  # within its lease, or past it
    cluster.start(victim)
    eventually(lambda: cluster.status(victim)["ready"], what=f"{victim} back")


def stop_one(cluster: Cluster, _redis: RedisServer, rng: random.Random) -> None:
    """SIGSTOP past every lease; what was queued there is served as a node that lost them."""
    victim = rng.choice(cluster.names)
    cluster.signal(victim, signal.SIGSTOP)
    try:
        PAUSE.wait(NODE_LEASE_SECONDS + 1)
    finally:
        cluster.signal(victim, signal.SIGCONT)


def isolate_one(cluster: Cluster, _redis: RedisServer, rng: random.Random) -> None:
    cluster.proxies.isolate(rng.choice(cluster.names), cluster.names)
    PAUSE.wait(NODE_LEASE_SECONDS + 1)


def cut_one_way(cluster: Cluster, _redis: RedisServer, rng: random.Random) -> None:
    one, other = rng.sample(cluster.names, 2)
    cluster.proxies.cut(one, other, answers_only=rng.random() < 0.5)
    PAUSE.wait(NODE_LEASE_SECONDS)


def restart_redis(_cluster: Cluster, redis: RedisServer, _rng: random.Random) -> None:
    redis.kill()
    PAUSE.wait(1.0)
    redis.start()


def pause_redis(_cluster: Cluster, redis: RedisServer, _rng: random.Random) -> None:
    redis.pause()
    try:
        PAUSE.wait(4.0)
    finally:
        redis.resume()


def slow_redis(_cluster: Cluster, redis: RedisServer, rng: random.Random) -> None:
    """It answers, after up to half a second."""
    for _ in range(12):
        redis.pause()
        try:
            PAUSE.wait(rng.uniform(0.1, 0.5))
        finally:
            redis.resume()
        PAUSE.wait(0.02)


def rolling_restart(cluster: Cluster, _redis: RedisServer, _rng: random.Random) -> None:
    """Each node leaves in good order and comes back."""
    for name in list(cluster.processes):
        cluster.signal(name, signal.SIGTERM)
        cluster.processes[name].wait(timeout=30)
        cluster.start(name)
        eventually(lambda name=name: cluster.status(name)["ready"], what=f"{name} back")


Fault = Callable[[Cluster, RedisServer, random.Random], None]

SHORT = [stop_one, cut_one_way]
FAULTS = [*SHORT, kill_one, isolate_one, restart_redis, pause_redis, slow_redis, rolling_restart]


@pytest.mark.parametrize("fault", SHORT, ids=lambda fault: fault.__name__)
def test_histories_are_linearizable_under(
    fault: Fault, cluster: Cluster, redis: RedisServer, tmp_path: Path
) -> None:
    rng = random.Random(3)
    under(cluster, lambda _: fault(cluster, redis, rng), rounds=1, seed=3, directory=tmp_path)


def home_of(url: str, key: str) -> str:
    """The home of a key. Where clients reach it takes a moment to spread."""
    return eventually(lambda: get(url, key).headers.get("distsync-owner", ""), what=key)


def lines_at(url: str, prefix: str) -> dict[str, str]:
    """The states of the lines of a node whose keys begin so."""
    page = send(url, "GET", f"/debug/cache/lines?limit=1000&after={quote(prefix)}").json["lines"]
    return {one["key"]: one["state"] for one in page if one["key"].startswith(prefix)}


class Cast:
    """Keys of which one node, the victim, is the home, the owner, both, or a sharer.

    Of those in M what is newest is nowhere but where the protocol has put it.
    """

    def __init__(self, cluster: Cluster, recorder: CacheRecorder, victim: str, mode: str) -> None:
        self._recorder = recorder
        self._victim = cluster.url(victim)
        self._other = next(cluster.url(name) for name in cluster.names if name != victim)
        self._owned = "E" if mode == THROUGH else "M"
        self._prefix = f"{mode}{recorder.prefix}{victim} {time.monotonic_ns()}/"
        self.roles: dict[str, str] = {}

    def choose(self) -> None:
        """Find keys for all roles, by who is their home."""
        missing = [*("home", "home and owner", "owner", "sharer")] * KEYS_A_ROLE
        for number in itertools.count():
            if not missing:
                return
            key = f"{self._prefix}{number}"
            is_home = home_of(self._other, key) == self._victim
            fits = [role for role in missing if role.startswith("home") == is_home]
            if fits:
                self.roles[key] = fits[0]
                missing.remove(fits[0])

    def plays(self) -> bool:
        """Write all; return whether each line is what its role wants."""
        for key, role in self.roles.items():
            writer = self._victim if "owner" in role else self._other
            self._recorder.write(writer, key, f"{key} {time.monotonic_ns()}")
            if role == "sharer":
                self._recorder.read(self._victim, key)
        held = [lines_at(url, self._prefix) for url in (self._victim, self._other)]
        owned = self._owned
        wanted = {"home": "I" + owned, "owner": owned + "I", "sharer": "SS"}
        wanted["home and owner"] = wanted["owner"]
        return all(
            "".join(one.get(key, "I") for one in held) == wanted[role]
            for key, role in self.roles.items()
        )


def kill_in_all_roles(
    cluster: Cluster, recorder: CacheRecorder, rng: random.Random, *, past_lease: bool
) -> None:
    """kill -9 of a node that is home, owner and sharer at this moment, which is seen."""
    victim = rng.choice(cluster.names)
    survivors = [cluster.url(name) for name in cluster.names if name != victim]
    casts = [Cast(cluster, recorder, victim, mode) for mode in ("", THROUGH)]
    for cast in casts:
        cast.choose()
    wait_settled(cluster)
    eventually(lambda: all(cast.plays() for cast in casts), what=f"{victim} in all roles")
    cluster.kill(victim)
    keys = [key for cast in casts for key in cast.roles]
    if past_lease:
        for key in keys:
            for url in survivors:
                recorder.read(url, key)
        for key in keys:
            recorder.write(rng.choice(survivors), key, "after the death")
    else:
        PAUSE.wait(0.3)
    cluster.start(victim)
    eventually(lambda: cluster.status(victim)["ready"], what=f"{victim} back")


def test_histories_are_linearizable_when_home_owner_and_sharer_die(
    cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(4)
    under(
        cluster,
        lambda recorder: kill_in_all_roles(cluster, recorder, rng, past_lease=True),
        rounds=1,
        seed=4,
        directory=tmp_path,
    )


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("past_lease", [False, True])
def test_histories_are_linearizable_when_home_owner_and_sharer_die_many_times(
    past_lease: bool, seed: int, cluster: Cluster, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    under(
        cluster,
        lambda recorder: kill_in_all_roles(cluster, recorder, rng, past_lease=past_lease),
        rounds=4,
        seed=seed,
        directory=tmp_path,
    )


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_four_seconds_after_kill_9_all_is_read_and_written_again(
    leads: bool, cluster: Cluster, tmp_path: Path
) -> None:
    """The leader's death takes an election first; its 2.8 s leave room for one that is split."""
    leader = cluster.wait_for_leader()
    victim = next(name for name in cluster.names if (name == leader) == leads)
    survivors = [cluster.url(name) for name in cluster.names if name != victim]
    recorder = CacheRecorder(survivors, seed=0, prefix=f"{tmp_path.name}/")
    casts = [Cast(cluster, recorder, victim, mode) for mode in ("", THROUGH)]
    for cast in casts:
        cast.choose()
    wait_settled(cluster)
    eventually(lambda: all(cast.plays() for cast in casts), what=f"{victim} in all roles")
    keys = [key for cast in casts for key in cast.roles]
    cluster.kill(victim)
    killed = time.monotonic()

    def serve(item: tuple[int, str]) -> None:
        url = survivors[item[0] % len(survivors)]
        recorder.read(url, item[1])
        recorder.write(url, item[1], "after the death")

    with ThreadPoolExecutor(len(keys)) as pool:
        list(pool.map(serve, enumerate(keys)))
    took_s = time.monotonic() - killed
    assert not unexplained(recorder.read_everywhere())
    assert took_s <= SERVED_AGAIN_SECONDS


@pytest.mark.long
def test_a_line_whose_home_and_owner_die_together_is_lost_until_it_is_written(
    tmp_path: Path,
) -> None:
    with (
        RedisServer(tmp_path / "redis") as redis,
        running(tmp_path, redis, nodes=5, founders=5) as cluster,
    ):
        wait_serving(cluster, cluster.names)
        wait_settled(cluster)
        one = cluster.url("n1")
        assert all(put(one, str(number), "old").status == 200 for number in range(20))
        homes = {str(number): home_of(one, str(number)) for number in range(20)}
        lost = [key for key, home in homes.items() if home == cluster.url("n2")]
        kept = [key for key, home in homes.items() if home == cluster.url("n3")]
        assert lost
        assert kept
        eventually(lambda: is_all_in_redis(cluster), what="the first values in redis")

        def are_dirty() -> bool:
            assert all(put(one, key, "new").status == 200 for key in [*lost, *kept])
            states = lines_at(one, "")
            return {states[key] for key in [*lost, *kept]} == {"M"}

        eventually(are_dirty, what="values that Redis has not")
        for name in ("n1", "n2"):
            cluster.signal(name, signal.SIGKILL)
        survivors = [cluster.url(name) for name in ("n3", "n4", "n5")]
        for key in lost:
            for url in survivors:
                answer = eventually(lambda key=key, url=url: said_of(url, key), what=key)
                assert (answer.status, answer.json.get("code")) == (410, "line_lost")
            assert put(survivors[0], key, "newest").status == 200
        for key in kept:
            answer = eventually(lambda key=key: said_of(survivors[1], key), what=key)
            assert answer.json["value"] == "new"
        for key in lost:
            assert [get(url, key).json["value"] for url in survivors] == ["newest"] * 3


def is_all_in_redis(cluster: Cluster) -> bool:
    """Whether no node has a value that Redis has not."""
    stats = [send(url, "GET", "/cache").json for url in cluster.urls]
    return all(one["dirty_bytes"] == one["kept_bytes"] == 0 for one in stats)


def said_of(url: str, key: str) -> Answer | None:
    """What a node says of a key, once it can say anything."""
    answer = get(url, key)
    return None if answer.status == 503 else answer


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_histories_are_linearizable_under_many(
    fault: Fault, seed: int, cluster: Cluster, redis: RedisServer, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    under(cluster, lambda _: fault(cluster, redis, rng), rounds=3, seed=seed, directory=tmp_path)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2])
def test_histories_are_linearizable_while_3_nodes_become_5_and_3_again(
    seed: int, tmp_path: Path
) -> None:
    with (
        RedisServer(tmp_path / "redis") as redis,
        running(tmp_path, redis, nodes=5) as cluster,
    ):
        founders, late = cluster.names[:3], cluster.names[3:]
        wait_serving(cluster, founders)

        def grow_and_shrink(_recorder: CacheRecorder) -> None:
            cluster.start(*late)
            wait_serving(cluster, cluster.names)
            for name in late:
                cluster.signal(name, signal.SIGTERM)
                assert cluster.processes[name].wait(timeout=30) == 0
            cluster.wait_for_ring(founders)

        under(cluster, grow_and_shrink, rounds=2, seed=seed, directory=tmp_path)


class Writers:
    """Each rewrites keys of its own, through any node that takes connections, and counts."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster = cluster
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self.written: dict[str, int] = {}
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(count)]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number: int) -> None:
        rng = random.Random(number)
        value = 0
        while not self._stop.is_set():
            value += 1
            key = f"writer {number} {value % 9}"
            while not self._stop.is_set() and not self._is_written(rng, key, value):
                PAUSE.wait(0.01)

    def _is_written(self, rng: random.Random, key: str, value: int) -> bool:
        try:
            answer = put(rng.choice(self._cluster.urls), key, value)
        except (ConnectionError, http.client.HTTPException):
            return False  # nobody took it, or nobody read it: its node had just stopped
        said = "ok" if answer.status == 200 else f"{answer.status} {answer.json['code']}"
        self.answers[said] += 1
        if answer.status == 200:
            self.written[key] = value
        return answer.status == 200


@pytest.mark.parametrize("mode", ["mirrored", "write_through"])
def test_no_write_is_in_doubt_while_nodes_restart_join_and_leave(mode: str, tmp_path: Path) -> None:
    with RedisServer(tmp_path / "redis") as redis:
        options = ["--redis", redis.url, "--cache-durability", mode]
        cluster = Cluster(tmp_path, nodes=4, founders=3, options=options)
        try:
            cluster.start(*cluster.names[:3])
            wait_serving(cluster, cluster.names[:3])
            with Writers(cluster, 6) as writers:
                rolling_restart(cluster, redis, random.Random(1))
                cluster.start("n4")
                wait_serving(cluster, cluster.names)
                cluster.signal("n4", signal.SIGTERM)
                assert cluster.processes["n4"].wait(timeout=30) == 0
                cluster.wait_for_ring(cluster.names[:3])
            assert writers.answers["ok"] > 500
            assert not any("504" in said for said in writers.answers), writers.answers
            read = {key: get(cluster.urls[0], key).json["value"] for key in writers.written}
            assert read == writers.written
        finally:
            cluster.close()


def test_a_read_that_waited_in_a_stopped_node_is_not_answered_with_what_it_held(
    cluster: Cluster,
) -> None:
    one, two, three = cluster.urls
    put(one, "stopped", "old")
    assert get(three, "stopped").json["value"] == "old"
    cluster.signal("n3", signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            queued = pool.submit(get, three, "stopped")
            eventually(lambda: put(two, "stopped", "new").status == 200, what="the write")
            cluster.signal("n3", signal.SIGCONT)
            answer = queued.result()
    finally:
        cluster.signal("n3", signal.SIGCONT)
    assert answer.status == 503 or answer.json["value"] == "new"


def make_dirty(url: str, keys: Sequence[str]) -> None:
    """Have a node hold values of its own, under local durability, that Redis has not.

    They are dirty for a second only: then they are idle, and written back.
    """

    def all_are_dirty() -> bool:
        for key in keys:
            assert put(url, key, key).status == 200
        held = send(url, "GET", "/debug/cache/lines?limit=1000").json["lines"]
        return {line["key"] for line in held if line["dirty"]} >= set(keys)

    eventually(all_are_dirty, what="dirty lines")


def drain(cluster: Cluster, name: str) -> None:
    """POST /cluster/drain, which nothing but the end of the process takes back."""
    url = f"http://127.0.0.1:{cluster.port(name) + 100}/cluster/drain"
    assert call(url, {}, secret=SECRET)["draining"] is True


def test_a_node_that_is_drained_leaves_what_only_it_had_to_the_others(cluster: Cluster) -> None:
    keys = [f"local/drained {i}" for i in range(20)]
    make_dirty(cluster.urls[2], keys)
    try:
        drain(cluster, "n3")
        cluster.wait_for_ring(["n1", "n2"])
        assert [get(cluster.urls[0], key).json.get("value") for key in keys] == keys
    finally:
        cluster.kill("n3")


def test_a_drained_node_passes_calls_of_the_cache_on(cluster: Cluster) -> None:
    """Over a connection that its client keeps, whatever Services do."""
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port("n3"), timeout=20)

    def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        began = time.monotonic()
        encoded = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("content-type", "application/json")
        connection.request(method, path, encoded, headers)
        response = connection.getresponse()
        content = response.read()
        assert time.monotonic() - began < 5, "it waits for nothing"
        is_json = "json" in response.getheader("content-type", "")
        return response.status, json.loads(content) if is_json else content

    assert put(cluster.urls[0], "passed/on", 1).status == 200
    try:
        drain(cluster, "n3")
        for _ in range(2):  # while it writes back, and when it is out of the ring
            status, found = ask("GET", "/cache/passed%2Fon")
            assert (status, found["value"]) == (200, 1)
            assert ask("GET", "/v1/cache/no%20value")[0] == 404
            status, written = ask("PUT", "/cache/new", {"value": [1]})
            assert (status, get(cluster.urls[1], "new").json["version"]) == (
                200,
                written["version"],
            )
            same = {"if-none-match": f'"{written["version"]}"'}
            assert ask("GET", "/cache/new", **same) == (304, b"")
            refused = ask("PUT", "/cache/new", {"value": 2, "if_version": "0.0"})
            assert (refused[0], refused[1]["code"]) == (412, "version_mismatch")
            raw = {"content-type": "application/octet-stream"}
            assert ask("PUT", "/cache/new%2Fraw?tag=some", b"\0\xff", **raw)[0] == 200
            assert ask("GET", "/cache/new%2Fraw") == (200, b"\0\xff")
            assert ask("POST", "/cache/invalidate_tag", {"tag": "some"})[0] == 200
            assert get(cluster.urls[1], "new/raw").status == 404
            status, batch = ask("POST", "/cache/batch", {"get": ["new"], "delete": ["none"]})
            assert (status, batch["get"]["new"]["value"]) == (200, [1])
            status, computation = ask("POST", "/cache/compute", {"key": "computed"})
            assert (status, computation["status"]) == (200, "compute")
            path = f"/cache/computed/compute?token={computation['token']}"
            assert ask("DELETE", path) == (200, {"given_up": True})
            assert ask("DELETE", "/cache/new")[0] == 200
            assert ask("PUT", "/cache/new", b"{")[0] == 400
            cluster.wait_for_ring(["n1", "n2"])
        assert ask("GET", "/cache")[0] == 503, "it has nothing to say of itself"
    finally:
        connection.close()
        cluster.kill("n3")


def test_a_drained_node_that_does_not_hear_of_the_ring_without_it_serves_nothing(
    cluster: Cluster,
) -> None:
    leader = cluster.wait_for_leader()
    leaves, other = [name for name in cluster.names if name != leader]

    def holds_nothing_else_dirty() -> bool:
        stats = send(cluster.url(leaves), "GET", "/cache").json
        return stats["kept_bytes"] == stats["dirty_bytes"] == 0

    put(cluster.url(leader), "left", "old")
    eventually(holds_nothing_else_dirty, what="redis has everything")
    assert get(cluster.url(leaves), "left").json["value"] == "old"
    try:
        # It is heard, and hears nothing any more.
        for name in (leader, other):
            cluster.proxies.cut(name, leaves)
            cluster.proxies.cut(leaves, name, answers_only=True)
        drain(cluster, leaves)
        cluster.wait_for_ring([leader, other])
        assert put(cluster.url(leader), "left", "new").status == 200
        answer = get(cluster.url(leaves), "left")
        assert answer.status == 503 or answer.json["value"] == "new"
    finally:
        cluster.proxies.mend()
        cluster.kill(leaves)


def test_a_node_that_is_told_to_stop_writes_back_what_only_it_has(
    cluster: Cluster, redis: RedisServer
) -> None:
    keys = [f"local/{i}" for i in range(20)]
    make_dirty(cluster.urls[0], keys)
    cluster_id = cluster.status("n1")["cluster_id"]
    cluster.signal("n1", signal.SIGTERM)
    assert cluster.processes["n1"].wait(timeout=30) == 0
    with redis.client() as client:
        for key in keys:
            stored = client.hget(redis_key(cluster_id, key), "v")
            assert stored == b'j"%b"' % key.encode()
    for key in keys:
        eventually(
            lambda key=key: get(cluster.urls[1], key).json.get("value") == key,
            what=f"{key} is back",
        )


def test_a_node_that_is_told_to_stop_writes_back_thousands_of_values_that_only_it_has(
    cluster: Cluster,
) -> None:
    one, two = cluster.urls[0], cluster.urls[1]
    batches = [[f"local/many-{batch}-{i}" for i in range(1_000)] for batch in range(3)]

    def much_is_dirty() -> bool:
        """It is for a second only: then it is idle, and written back."""
        for keys in batches:
            told = post(one, "/cache/batch", {"set": [{"key": key, "value": key} for key in keys]})
            assert all("error" not in item for item in told.json["set"])
        return send(one, "GET", "/cache").json["dirty_bytes"] > 1_000_000

    eventually(much_is_dirty, what="dirty lines")
    cluster.signal("n1", signal.SIGTERM)
    assert cluster.processes["n1"].wait(timeout=30) == 0
    for keys in batches:
        found = post(two, "/cache/batch", {"get": keys}).json["get"]
        assert {key: item.get("value") for key, item in found.items()} == {key: key for key in keys}


def test_what_only_its_owner_has_is_in_redis_once_nobody_has_written_it_for_a_while(
    cluster: Cluster, redis: RedisServer
) -> None:
    one = cluster.urls[0]
    assert put(one, "local/idle", "value").json["state"] == "M"
    cluster_id = cluster.status("n1")["cluster_id"]
    with redis.client() as client:
        eventually(
            lambda: client.hget(redis_key(cluster_id, "local/idle"), "v") == b'j"value"',
            what="the write-back",
        )
    eventually(lambda: get(one, "local/idle").json["state"] == "E", what="a clean line")


def test_without_redis_what_is_not_here_says_so_and_comes_back(
    cluster: Cluster, redis: RedisServer
) -> None:
    one = cluster.urls[0]
    put(one, "kept", 1)
    redis.kill()
    try:
        answer = get(one, "never read")
        assert (answer.status, answer.json["code"]) == (503, "redis_unavailable")
        assert "retry-after" in answer.headers
        assert get(one, "kept").json["value"] == 1
    finally:
        redis.start()
    eventually(lambda: get(one, "never read").status == 404, what="redis serves again")
