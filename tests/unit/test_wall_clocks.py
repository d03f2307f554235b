"""Wall clocks decide nothing: clocks of nodes and clients may be a minute apart, or jump.

Leases count elapsed time, queues and schedules go by the one clock of Redis.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
READINGS = {
    ("time", "time"),
    ("time", "time_ns"),
    ("time", "localtime"),
    ("time", "gmtime"),
    ("time", "CLOCK_REALTIME"),
    ("datetime", "now"),
    ("datetime", "utcnow"),
    ("datetime", "today"),
    ("date", "today"),
}
FILES = sorted((*ROOT.glob("node/**/*.py"), *ROOT.glob("client/**/*.py")))


def readings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
            if (name, node.attr) in READINGS:
                yield f"line {node.lineno}: {name}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            for alias in node.names:
                if ("time", alias.name) in READINGS:
                    yield f"line {node.lineno}: from time import {alias.name}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_module_reads_a_wall_clock(file: Path) -> None:
    assert list(readings(file.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\ntime.time()",
        "import datetime\ndatetime.datetime.now()",
        "from datetime import datetime\ndatetime.now(UTC)",
        "from time import time",
        "import time\ntime.clock_gettime(time.CLOCK_REALTIME)",
    ],
)
def test_a_reading_would_be_seen(source: str) -> None:
    assert len(list(readings(source))) == 1
