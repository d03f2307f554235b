"""The files around the code: what is installed, and what a change must pass."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = sorted((ROOT / "requirements").glob("*.txt"))
SHELL_OF_THE_CACHE = ("calls", "links", "memory", "scripts", "service")  # with I/O and clocks
REQUIREMENT = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+]+( ; .+)?")


@pytest.mark.parametrize("file", LOCKED, ids=lambda file: file.stem)
def test_everything_that_is_installed_is_pinned_by_its_hash_and_names_no_registry(
    file: Path,
) -> None:
    text = re.sub(r"#.*", "", file.read_text()).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines
    for line in lines:
        requirement, *hashes = re.split(r"\s+--hash=", line)
        assert REQUIREMENT.fullmatch(requirement.strip()), line
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one.strip()) for one in hashes), line


def test_there_is_a_lock_file_for_each_extra() -> None:
    assert {file.stem for file in LOCKED} == {"base", *PROJECT["optional-dependencies"]}


def test_every_python_that_may_install_it_is_named_and_no_other() -> None:
    named = [
        found[1]
        for line in PROJECT["classifiers"]
        if (found := re.search(r":: 3\.(\d+)$", line)) is not None
    ]
    low, high = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", PROJECT["requires-python"]).groups()  # type: ignore[union-attr]
    assert [int(minor) for minor in named] == list(range(int(low), int(high)))


def test_a_change_must_pass_lint_and_tests() -> None:
    assert re.search(r"^exec make lint test\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_every_module_of_the_cache_is_pure_but_those_that_are_its_shell() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    listed = contracts["importlinter:contract:pure-cores"]["source_modules"].split()
    package = "distsync_node.cache"
    files = ROOT / "node/distsync_node/cache"
    parts = [*files.glob("*.py"), *(file.parent for file in files.glob("*/__init__.py"))]
    modules = {f"{package}.{part.stem}" for part in parts}
    shell = {f"{package}.{name}" for name in ("__init__", *SHELL_OF_THE_CACHE)}
    assert {name for name in listed if name.startswith(f"{package}.")} == modules - shell


def test_the_licence_is_the_one_that_is_named() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]
