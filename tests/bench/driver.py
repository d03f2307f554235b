"""Starts load processes and hands their figures on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import msgspec

from bench.load import LoadResult, LoadSpec
from bench.machine import REPOSITORY

GRACE_S = 30.0


class LoadFailedError(Exception):
    """The load process gave no result."""


def run_load(spec: LoadSpec, while_running: Callable[[], float] | None = None) -> LoadResult:
    """One run in a process of its own.

    `while_running` is called when the window has begun; it kills a node and gives the moment.
    Raises: LoadFailedError.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.load"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
    )
    try:
        return _talk(process, spec, while_running)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
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
        raise LoadFailedError(f"the load process ended before its window: {spec.run_id}")
    if while_running is not None:
        killed_at_s = while_running()
        process.stdin.write(b"%r\n" % killed_at_s)
        process.stdin.flush()
    try:
        said, _ = process.communicate(timeout=spec.duration_s + GRACE_S)
    except subprocess.TimeoutExpired:
        raise LoadFailedError(f"the load process did not end: {spec.run_id}") from None
    if not said:
        raise LoadFailedError(f"the load process gave no result: {spec.run_id}")
    return msgspec.json.decode(said, type=LoadResult)


def unique_run_id(prefix: str) -> str:
    """Names that no other run uses: a lease left behind must not block the next run."""
    return f"{prefix}-{time.monotonic_ns():x}"
