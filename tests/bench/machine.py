"""What the benchmark ran on, and what Linux says of the processes it measures."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import msgspec

CORES = 2
QUIET_BUSY_SHARE = 0.1
"""A machine whose cores are busier than this before the run is not quiet; the figures say so."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MEMORY_FILESYSTEMS = frozenset({"tmpfs", "ramfs", "devtmpfs"})
REPOSITORY = Path(__file__).resolve().parents[2]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and its state before the run."""

    cpu: str
    cores: list[int]
    memory_gib: float
    kernel: str
    python: str
    filesystem: str
    fdatasync_ms: float
    load_average: tuple[float, float, float]
    busy_share: float
    quiet: bool
    versions: dict[str, str]
    revision: str
    began: str


def pin_to_cores() -> list[int]:
    """Keep this process and all it starts on the same cores. Gives their numbers."""
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    os.sched_setaffinity(0, cores)
    return cores


def describe(data_root: Path, cores: list[int], versions: dict[str, str]) -> Machine:
    """The machine before the run; looks at it for two seconds.

    Raises: SystemExit when `data_root` is in memory, where fsync costs nothing.
    """
    filesystem = filesystem_of(data_root)
    if filesystem in _MEMORY_FILESYSTEMS:
        raise SystemExit(f"{data_root} is on {filesystem}: name a directory on a disk (--data-dir)")
    busy = busy_share(2.0)
    return Machine(
        cpu=_cpu_model(),
        cores=cores,
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release().partition("-")[0],
        python=platform.python_version(),
        filesystem=filesystem,
        fdatasync_ms=round(fdatasync_ms(data_root), 3),
        load_average=os.getloadavg(),
        busy_share=round(busy, 3),
        quiet=busy <= QUIET_BUSY_SHARE,
        versions=versions,
        revision=_revision(),
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def process_cpu_s(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # The second field is the program's name in parentheses and may hold spaces.
    fields = stat[stat.rindex(")") + 2 :].split()
    return sum(int(field) for field in fields[11:15]) / _TICKS_PER_S


def session_cpu_s(leader: int) -> float:
    """CPU seconds of all processes of a session, and of their children that have ended."""
    return sum(process_cpu_s(pid) for pid in _processes() if _session_of(pid) == leader)


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def directory_mib(path: Path) -> float:
    """What the files under a directory take on the disk, sparse ones as they are."""
    blocks = 0
    for file in path.rglob("*"):
        try:
            blocks += file.lstat().st_blocks
        except FileNotFoundError:  # a segment or snapshot removed meanwhile
            continue
    return blocks * 512 / 2**20


def busy_share(seconds: float) -> float:
    """How busy all cores are together, over some seconds from now."""
    idle, total = _cpu_ticks()
    time.sleep(seconds)  # the time that is measured
    idle_after, total_after = _cpu_ticks()
    return 1 - (idle_after - idle) / max(total_after - total, 1)


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that holds a path."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, mount, this_kind, *_ = line.split()
        point = mount.replace("\\040", " ").rstrip("/") + "/"
        if f"{path.resolve()}/".startswith(point) and len(point) >= len(best):
            best, kind = point, this_kind
    return kind


def fdatasync_ms(directory: Path, times: int = 200) -> float:
    """Median time of writing 4 KiB at the end of a file and syncing it."""
    took: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(times):
            file.write(bytes(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def version_of(distribution: str) -> str:
    """The installed version of a distribution, or `missing`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _cpu_ticks() -> tuple[int, int]:
    with open("/proc/stat") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _revision() -> str:
    try:
        asked = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return asked.stdout.strip()
