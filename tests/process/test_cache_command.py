"""`distsync cache` against real nodes and a real Redis."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from distsync import Client
from process.running import COMMAND, Up, distsync, running_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_cluster(tmp_path_factory.mktemp("cache-command") / "cluster") as up:
        yield up


@pytest.fixture(scope="module")
def client(cluster: Up) -> Iterator[Client]:
    with Client(cluster.urls) as client:
        yield client


@pytest.fixture
def key() -> str:
    return f"users/{uuid4().hex[:8]}"


def said(cluster: Up, *arguments: str) -> str:
    ended = distsync("cache", *arguments, url=cluster.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def ask(cluster: Up, *arguments: str) -> Any:
    return json.loads(said(cluster, *arguments, "--output", "json"))


def refused(cluster: Up, *arguments: str, exit_code: int = 1) -> str:
    ended = distsync("cache", *arguments, url=cluster.url)
    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def raw(cluster: Up, *arguments: str, feed: bytes = b"") -> bytes:
    ended = subprocess.run(
        [*COMMAND, "cache", *arguments],
        env={**os.environ, "DISTSYNC_URL": cluster.url},
        input=feed,
        capture_output=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout


def test_bytes_come_from_arguments_input_and_files_and_come_back_as_they_are(
    cluster: Up, key: str, tmp_path: Path, client: Client
) -> None:
    data = bytes(range(256)) + b"\r\n"
    file = tmp_path / "value"
    file.write_bytes(data)
    for arguments, feed, expected in (
        (["hello"], b"", b"hello"),
        (["--", "-5"], b"", b"-5"),
        (["-"], data, data),
        ([], data, data),
        (["--stdin"], b"", b""),
        (["--file", str(file)], b"", data),
    ):
        raw(cluster, "set", key, *arguments, feed=feed)
        assert client.cache.get(key) == expected
    assert raw(cluster, "get", key) == data
    told = ask(cluster, "get", key)
    assert (base64.b64decode(told["value"]), told["encoding"]) == (data, "base64")

    file.write_bytes(bytes(1024 * 1024 + 1))
    assert "longer than 1 MiB" in refused(cluster, "set", key, "--file", str(file))
    assert "exclude each other" in refused(cluster, "set", key, "x", "--stdin", exit_code=2)


def test_json_is_a_value_of_programs(cluster: Up, key: str, client: Client) -> None:
    version = said(cluster, "set", key, '{"name": "Ada", "n": [1, null]}', "--json").strip()
    assert client.cache.get(key) == {"name": "Ada", "n": [1, None]}
    assert said(cluster, "get", key) == '{"name":"Ada","n":[1,null]}\n'
    told = ask(cluster, "get", key)
    assert (told["key"], told["version"]) == (key, version)
    assert told["state"] in "MESI"
    assert "ttl_ms" not in told
    assert "not JSON" in refused(cluster, "set", key, "{", "--json")


def test_a_value_is_written_under_its_version_and_for_its_time(
    cluster: Up, key: str, client: Client
) -> None:
    first = ask(cluster, "set", key, "one", "--if-version=0.0", "--ttl=1h")
    assert first["key"] == key
    assert 3_500_000 < ask(cluster, "get", key)["ttl_ms"] <= 3_600_000
    assert "(version_mismatch)" in refused(cluster, "set", key, "two", "--if-version=0.0")
    assert "(version_mismatch)" in refused(cluster, "del", key, "--if-version=0.0")
    assert said(cluster, "del", key, "--if-version", first["version"]) == f"{key} removed\n"
    assert client.cache.get(key) is None
    assert refused(cluster, "get", key) == f"distsync: {key} has no value (not_found)\n"
    assert said(cluster, "del", key, "other") == f"{key} removed\nother removed\n"
    assert "one KEY" in refused(cluster, "del", "a", "b", "--if-version=1.1", exit_code=2)


def test_a_tag_removes_its_values(cluster: Up, key: str, client: Client) -> None:
    said(cluster, "set", key, "x", "--tag=t", "--tag", key)
    assert ask(cluster, "invalidate-tag", key) == {"tag": key, "invalidated": True}
    assert client.cache.get(key) is None


def test_nodes_tell_what_they_hold(cluster: Up, key: str, client: Client) -> None:
    client.cache.set(key, "x", ttl=3600)
    client.cache.get(key)
    nodes = ask(cluster, "stats")["nodes"]
    assert [node["name"] for node in nodes] == ["node-1", "node-2", "node-3"]
    assert sum(sum(node["stats"]["lines"].values()) for node in nodes) >= 1
    heading, *rows = said(cluster, "stats").splitlines()
    assert heading.split()[:5] == ["NAME", "M", "E", "S", "BYTES"]
    assert [row.split()[0] for row in rows[:3]] == ["node-1", "node-2", "node-3"]

    held = [
        (node["name"], line)
        for node in ask(cluster, "lines", "--limit=0")["nodes"]
        for line in node["lines"]
        if line["key"] == key
    ]
    assert held
    name, line = held[0]
    assert line["state"] in "MES"
    assert line["bytes"] >= 1
    of_node = said(cluster, "lines", "--node", name, "--limit=0").splitlines()
    # Its state may be another by now: what nobody has written for a second is written back.
    assert [name, key] in [row.split()[:2] for row in of_node]
    assert "no node nobody" in refused(cluster, "lines", "--node=nobody")


def test_keys_are_completed(cluster: Up, key: str, client: Client) -> None:
    client.cache.set(key, "x")
    client.cache.get(key)

    def offered(url: str) -> list[str]:
        ended = subprocess.run(
            COMMAND,
            env={
                **os.environ,
                "_DISTSYNC_COMPLETE": "bash_complete",
                "COMP_WORDS": f"distsync cache get {key[:10]}",
                "COMP_CWORD": "3",
                "DISTSYNC_URL": url,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )
        return [line.partition(",")[2] for line in ended.stdout.split()]

    assert any(key in offered(url) for url in cluster.urls)


def test_a_cluster_that_is_not_there_is_one_line(key: str) -> None:
    for arguments in (("stats",), ("lines",)):
        ended = distsync("cache", *arguments, url="http://127.0.0.1:9")
        assert (ended.returncode, ended.stdout) == (1, "")
        assert "(unavailable)" in ended.stderr or "no node answers" in ended.stderr
        assert ended.stderr.count("\n") == 1
