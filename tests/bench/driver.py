"""Starts load processes and hands their figures on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO

import msgspec

from bench.load import LoadResult, LoadSpec
from bench.machine import REPOSITORY

DEADLINE_FACTOR = 3.0
DEADLINE_LEAST_S = 15.0
SHOWN_BYTES = 2_000


class LoadFailedError(Exception):
    """The load process gave no result."""


def deadline_s(spec: LoadSpec) -> float:
    """After how long a load process is killed, from its start: a few times what was planned."""
    return DEADLINE_LEAST_S + DEADLINE_FACTOR * (spec.warmup_s + spec.duration_s)


def run_load(
    spec: LoadSpec,
    while_running: Callable[[], float] | None = None,
    *,
    module: str = "bench.load",
    kill_after_s: float | None = None,
) -> LoadResult:
    """One run in a process of its own: the load of `module`.

    `while_running` is called when the window has begun; it kills a node and gives the moment.
    Raises: LoadFailedError, also when the process is not done by its deadline.
    """
    limit_s = deadline_s(spec) if kill_after_s is None else kill_after_s
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
        )
        # Whatever this process then waits for, it ends with the other one's death.
        is_late = threading.Event()

        def kill() -> None:
            is_late.set()
            process.kill()

        deadline = threading.Timer(limit_s, kill)
        deadline.daemon = True
        deadline.start()
        try:
            return _talk(process, spec, while_running)
        except (LoadFailedError, BrokenPipeError) as failure:
            late = f", killed after {limit_s:g} s" if is_late.is_set() else ""
            raise LoadFailedError(f"{failure}{late}: {spec.run_id}\n{_tail(errors)}") from None
        finally:
            deadline.cancel()
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _talk(
    process: subprocess.Popen[bytes],
    spec: LoadSpec,
    while_running: Callable[[], float] | None,
) -> LoadResult:
    if process.stdin is None or process.stdout is None:
        raise LoadFailedError("no pipes to the load process")
    process.stdin.write(msgspec.json.encode(spec) + b"\n")
    process.stdin.flush()
    if process.stdout.readline() != b"running\n":
        raise LoadFailedError("the load process ended before its window")
    if while_running is not None:
        killed_at_s = while_running()
        process.stdin.write(b"%r\n" % killed_at_s)
        process.stdin.flush()
    said, _ = process.communicate()
    if not said:
        raise LoadFailedError("the load process gave no result")
    return msgspec.json.decode(said, type=LoadResult)


def _tail(errors: IO[bytes]) -> str:
    """The end of what the load process said went wrong."""
    length = errors.seek(0, os.SEEK_END)
    errors.seek(max(length - SHOWN_BYTES, 0))
    return errors.read().decode(errors="replace")


def unique_run_id(prefix: str) -> str:
    """Names that no other run uses: a lease left behind must not block the next run."""
    return f"{prefix}-{time.monotonic_ns():x}"
