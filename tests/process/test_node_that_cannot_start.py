"""`distsync node` that cannot start: one clear line on stderr and exit code 2, nothing changed."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync_node.raft.types import Entry, EntryKind, HardState, LogIndex, Persist, Term
from distsync_node.replica.genesis import blank_snapshot
from distsync_node.storage import Storage
from process.calls import get
from process.running import COMMAND, eventually, free_base_port
from redis_server import RedisServer


@pytest.fixture
def port() -> int:
    return free_base_port(1) + 1


def arguments(tmp_path: Path, port: int, data_dir: Path) -> list[str]:
    secret = tmp_path / "secret"
    secret.write_text("a secret of tests")
    return [
        *COMMAND,
        "node",
        "--name=n1",
        f"--data-dir={data_dir}",
        f"--port={port}",
        f"--secret-file={secret}",
    ]


def refused(command: list[str]) -> str:
    """Run a node that must not start; return its one line."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("distsync")
    return line


@pytest.mark.parametrize("offset", [0, 100], ids=["client", "peer"])
def test_a_taken_port(offset: int, tmp_path: Path, port: int) -> None:
    with socket.create_server(("127.0.0.1", port + offset)):
        line = refused(arguments(tmp_path, port, tmp_path / "data"))
    assert f"cannot listen on 127.0.0.1:{port + offset}: Address already in use" in line
    assert not (tmp_path / "data").exists()


@pytest.fixture
def running(tmp_path: Path, port: int) -> Iterator[Path]:
    """The data directory of a node that runs."""
    data_dir = tmp_path / "data"
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        arguments(tmp_path, port, data_dir), stdin=subprocess.DEVNULL, stdout=log, stderr=log
    )
    try:
        eventually(lambda: get(f"http://127.0.0.1:{port}/cluster/status")["member_id"])
        yield data_dir
        assert process.poll() is None, "the first node has ended"
    finally:
        process.kill()
        process.wait()
        log.close()


def test_a_second_node_in_the_same_data_directory(tmp_path: Path, port: int, running: Path) -> None:
    line = refused(arguments(tmp_path, port + 1, running))
    assert f"data directory {running} is in use by another node" in line
    assert get(f"http://127.0.0.1:{port}/healthz")


def test_a_data_directory_that_is_none(tmp_path: Path, port: int) -> None:
    file = tmp_path / "file"
    file.write_text("not a directory")
    line = refused(arguments(tmp_path, port, file / "data"))
    assert f"data directory {file / 'data'}" in line
    assert file.read_text() == "not a directory"


def test_a_flipped_byte_in_the_middle_of_the_log(tmp_path: Path, port: int) -> None:
    data_dir = tmp_path / "data"
    storage = Storage.open(data_dir)
    storage.initialise(blank_snapshot("k", 1), HardState(Term(1), None))
    for index in range(1, 101):
        entry = Entry(Term(1), LogIndex(index), EntryKind.COMMANDS, 0, b"x" * 100)
        storage.write([Persist(seq=index, entries=(entry,))])
    storage.close()
    (segment,) = (data_dir / "member").glob("log-*")
    content = bytearray(segment.read_bytes())
    used = len(content.rstrip(b"\0"))
    content[used // 2] ^= 0x40
    segment.write_bytes(content)

    line = refused(arguments(tmp_path, port, data_dir))
    assert str(segment) in line
    assert "cannot be trusted" in line
    assert segment.read_bytes() == content


def test_a_missing_secret(tmp_path: Path, port: int) -> None:
    command = arguments(tmp_path, port, tmp_path / "data")
    (tmp_path / "secret").unlink()
    assert "cannot read the shared secret" in refused(command)


def test_a_redis_url_that_is_none(tmp_path: Path, port: int) -> None:
    line = refused([*arguments(tmp_path, port, tmp_path / "data"), "--redis=http://localhost"])
    assert "http" in line
    assert "use redis, rediss, unix" in line


def test_a_redis_that_evicts(tmp_path: Path, port: int) -> None:
    with RedisServer(tmp_path) as server:
        server.client().config_set("maxmemory-policy", "allkeys-lru")
        line = refused([*arguments(tmp_path, port, tmp_path / "data"), f"--redis={server.url}"])
    assert "noeviction" in line


def test_a_redis_that_is_not_there_keeps_no_node_from_starting(tmp_path: Path, port: int) -> None:
    log = (tmp_path / "log").open("wb")
    command = [
        *arguments(tmp_path, port, tmp_path / "data"),
        f"--members=n1=http://127.0.0.1:{port + 100}",
        "--redis=redis://127.0.0.1:1",
    ]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        eventually(lambda: get(f"http://127.0.0.1:{port}/readyz")["status"] == "ready")
    finally:
        process.terminate()
        assert process.wait(30) == 0
