"""docs/checklist.md names only tests and transcripts that exist."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKLIST = ROOT / "docs" / "checklist.md"
NAMED = re.compile(r"`(tests/[\w/]+\.(?:py::\w+|txt))`")


@functools.cache
def functions_in(file: Path) -> set[str]:
    tree = ast.parse(file.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, functions)}


def rows() -> list[str]:
    lines = CHECKLIST.read_text().splitlines()
    return [line for line in lines if line.startswith("| ") and "Tests" not in line]


def test_every_promise_names_a_test() -> None:
    assert len(rows()) > 40
    assert [row for row in rows() if not NAMED.search(row)] == []


def test_everything_named_exists() -> None:
    table = "\n".join(rows())
    named = NAMED.findall(table)
    assert len(named) == table.count("`tests/")
    missing = []
    for name in named:
        path, _, test = name.partition("::")
        file = ROOT / path
        if not file.is_file() or (test and test not in functions_in(file)):
            missing.append(name)
    assert missing == []
