"""The same promises on real files: limits, permissions, two processes, kill -9, size."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from distsync_node.errors import StartupError
from distsync_node.raft.types import LogIndex, Persist
from distsync_node.storage import OsFileSystem, Storage
from unit.storage.samples import (
    GENESIS,
    GENESIS_HARD_STATE,
    append,
    entries,
    snapshot,
)

TESTS = Path(__file__).parents[2]
MEGABYTE = 1_000_000
NOBODY = 65_534


def founded(path: Path) -> Storage:
    storage = Storage.open(path)
    storage.initialise(GENESIS, GENESIS_HARD_STATE)
    return storage


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in a process of its own."""
    head = "import sys; sys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
    head += "from distsync_node.errors import *\nfrom distsync_node.storage import *\n"
    head += "from unit.storage.samples import *\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), str(TESTS)]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(code: str, *arguments: object) -> list[str]:
    process = start(code, *arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return output.splitlines()


def disk_usage(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.rglob("*"))


def test_all_is_there_after_close_and_open(tmp_path: Path) -> None:
    storage = founded(tmp_path)
    storage.write([append(2, 1000, payload=b"x" * 100)])
    storage.write([Persist(seq=1, snapshot=snapshot(900), keep_from=LogIndex(800))])
    storage.close()
    again = Storage.open(tmp_path)
    assert again.member_id == storage.member_id
    assert again.recovered is not None
    assert again.recovered.snapshot == snapshot(900)
    assert again.recovered.entries == entries(2, 1000, payload=b"x" * 100)
    again.close()


def test_a_file_system_without_reservation_or_synchronous_writes_works_too(tmp_path: Path) -> None:
    class Plain(OsFileSystem):
        def __init__(self) -> None:
            super().__init__()
            self._dsync_flag = 0

        def allocate(self, file: int, offset: int, length: int) -> bool:
            return False

    for first in (2, 22, 42):
        storage = Storage.open(tmp_path, filesystem=Plain())
        if not storage.initialised:
            storage.initialise(GENESIS, GENESIS_HARD_STATE)
        storage.write([append(first, first + 19)])
        storage.close()
    state = Storage.open(tmp_path).recovered
    assert state is not None
    assert state.entries == entries(2, 61)
    assert disk_usage(tmp_path) < 100_000


def test_a_second_process_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    storage = founded(tmp_path)
    code = """
        try:
            Storage.open(Path(sys.argv[2]))
        except StartupError as error:
            print(error)
        else:
            print("opened")
    """
    assert run(code, tmp_path) == [
        f"data directory {tmp_path} is in use by another node: stop that node, "
        "or give this one its own directory"
    ]
    storage.close()
    assert run(code, tmp_path) == ["opened"]


def test_the_same_process_cannot_open_a_directory_twice(tmp_path: Path) -> None:
    storage = founded(tmp_path)
    with pytest.raises(StartupError, match="in use"):
        Storage.open(tmp_path)
    storage.write([append(2, 2)])
    storage.close()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for wrong in (path, path / "below"):
        with pytest.raises(StartupError, match="is not a directory"):
            Storage.open(wrong)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that others can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.mark.parametrize(
    ("mode", "outcome"),
    [(0o000, "Permission denied"), (0o555, "Permission denied"), (0o777, "opened")],
)
def test_a_directory_without_permission_is_refused(
    public_directory: Path, mode: int, outcome: str
) -> None:
    path = public_directory / "data"
    path.mkdir()
    path.chmod(mode)
    code = """
        import os
        if os.getuid() == 0:
            os.setgid(int(sys.argv[3]))
            os.setuid(int(sys.argv[3]))
        try:
            Storage.open(Path(sys.argv[2]))
        except StartupError as error:
            print(error)
        else:
            print("opened")
    """
    (message,) = run(code, path, NOBODY)
    assert outcome in message
    if outcome != "opened":
        assert message.startswith(f"data directory {path} cannot be used: ")
        path.chmod(0o700)


def test_a_file_size_limit_refuses_writes_and_loses_nothing(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stops real writes half-way, as a full disk does."""
    code = """
        import resource
        class Plain(OsFileSystem):  # so that the limit is met by a write, in its middle
            def allocate(self, file, offset, length):
                return False
        storage = Storage.open(Path(sys.argv[2]), filesystem=Plain())
        storage.initialise(GENESIS, GENESIS_HARD_STATE)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
        last = 1
        try:
            while True:
                storage.write([append(last + 1, last + 10, payload=b"x" * 333)])
                last += 10
        except DiskFull:
            print(last)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        copy = Path(sys.argv[3])
        import shutil
        shutil.copytree(sys.argv[2], copy)
        storage.write([append(last + 1, last + 10, payload=b"x" * 333)])
    """
    data, copy = tmp_path / "data", tmp_path / "copy"
    (line,) = run(code, data, copy)
    last = int(line)
    assert last > 100
    for path, there in ((copy, last), (data, last + 10)):
        storage = Storage.open(path)
        assert storage.recovered is not None
        assert storage.recovered.entries == entries(2, there, payload=b"x" * 333)
        storage.close()


def test_a_limit_below_a_segment_is_used_to_the_end(tmp_path: Path) -> None:
    code = """
        import resource
        storage = Storage.open(Path(sys.argv[2]))
        storage.initialise(GENESIS, GENESIS_HARD_STATE)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
        last = 1
        try:
            while True:
                storage.write([append(last + 1, last + 1, payload=b"x" * 10_000)])
                last += 1
        except DiskFull as error:
            print(last)
            print(error)
    """
    last, message = run(code, tmp_path)
    assert message == f"no room to write to {tmp_path}: File too large"
    assert int(last) > 100
    state = Storage.open(tmp_path).recovered
    assert state is not None
    assert state.entries == entries(2, int(last), payload=b"x" * 10_000)


@pytest.mark.parametrize("round_number", range(3))
def test_a_killed_process_loses_nothing_it_acknowledged(tmp_path: Path, round_number: int) -> None:
    code = """
        storage = Storage.open(Path(sys.argv[2]))
        storage.initialise(GENESIS, GENESIS_HARD_STATE)
        index = 1
        while True:
            index += 1
            storage.write([append(index, index, payload=b"x" * (index % 2000))])
            if index % 200 == 0:
                storage.write([Persist(seq=1, snapshot=snapshot(index, 1, b"s" * 100_000))])
            print(index, flush=True)
    """
    process = start(code, tmp_path)
    assert process.stdout is not None
    acknowledged = 0
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= 430 + round_number * 37:
            break
    process.kill()
    acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
    process.wait(timeout=20)
    storage = Storage.open(tmp_path)
    state = storage.recovered
    assert state is not None
    assert state.snapshot.meta.index >= acknowledged // 200 * 200
    assert state.entries[-1].index in (acknowledged, acknowledged + 1)
    assert [e.index for e in state.entries] == list(range(2, state.entries[-1].index + 1))
    assert all(e.payload == b"x" * (e.index % 2000) for e in state.entries)
    storage.close()


def test_a_million_small_commands_stay_under_200_megabytes(tmp_path: Path) -> None:
    """A snapshot each 100,000 entries, 5,000 kept below it; measured in blocks on the disk."""
    storage = founded(tmp_path)
    payload = os.urandom(120)
    largest = last = 1
    while last < 1_000_000:
        storage.write([append(last + 1, last + 1000, payload=payload)])
        last += 1000
        if last % 100_000 == 1:
            largest = max(largest, disk_usage(tmp_path))
            new = snapshot(last, data=os.urandom(10 * MEGABYTE))
            storage.write([Persist(seq=last, snapshot=new, keep_from=LogIndex(last - 5000))])
            largest = max(largest, disk_usage(tmp_path))
    assert largest < 100 * MEGABYTE
    assert abs(storage.size_bytes - disk_usage(tmp_path)) < MEGABYTE
    storage.close()
    again = Storage.open(tmp_path)
    assert again.recovered is not None
    assert again.recovered.entries[-1].index == last
    assert again.recovered.entries[0].index <= last - 5000
    again.close()
