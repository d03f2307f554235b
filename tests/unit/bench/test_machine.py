"""What Linux says of a process and a directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import (
    directory_mib,
    filesystem_of,
    process_cpu_s,
    resident_mib,
    session_cpu_s,
)


def test_cpu_of_a_process_grows_as_it_works() -> None:
    before = process_cpu_s(os.getpid())
    while process_cpu_s(os.getpid()) < before + 0.05:
        sum(range(10_000))
    assert process_cpu_s(os.getpid()) >= before + 0.05


def test_a_process_that_is_gone_has_no_cpu() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert process_cpu_s(ended.pid) == 0.0


def test_cpu_of_a_session_has_that_of_children() -> None:
    work = "for _ in range(10**7): pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}]); input()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, start_new_session=True
    ) as leader:
        while (now_s := session_cpu_s(leader.pid)) < 0.15:
            assert leader.poll() is None
        leader.communicate(b"\n")
    assert now_s < 30


def test_resident_memory_is_that_of_an_interpreter() -> None:
    assert 5 < resident_mib(os.getpid()) < 10_000


def test_a_directory_counts_what_is_on_the_disk_and_not_its_holes(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    written = tmp_path / "deeper" / "written"
    with written.open("wb") as file:
        file.write(os.urandom(2 << 20))
        file.flush()
        os.fsync(file.fileno())
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(100 << 20)
    assert directory_mib(tmp_path) == pytest.approx(2, abs=0.5)


def test_proc_is_known_by_its_filesystem() -> None:
    assert filesystem_of(Path("/proc/self")) == "proc"
