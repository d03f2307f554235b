"""What README shows is run as it stands, against a cluster that `distsync up` started."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from process.running import Up, running_cluster

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXPECTED = "# -> "


@dataclass(frozen=True)
class Example:
    line: int
    language: str
    text: str

    @property
    def expected(self) -> list[str]:
        lines = [line.strip() for line in self.text.splitlines()]
        return [line.removeprefix(EXPECTED) for line in lines if line.startswith(EXPECTED)]


def examples() -> list[Example]:
    blocks = re.finditer(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [
        Example(README.count("\n", 0, block.start()) + 1, block[1], block[2]) for block in blocks
    ]


def is_about_make(example: Example) -> bool:
    return re.search(r"^make ", example.text, re.MULTILINE) is not None


RUN_HERE = [example for example in examples() if not is_about_make(example)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """In a directory in which `distsync up` was started without --data-dir."""
    with running_cluster(tmp_path_factory.mktemp("readme") / ".distsync") as up:
        yield up


@pytest.mark.parametrize("example", RUN_HERE, ids=lambda example: f"line {example.line}")
def test_an_example_does_what_it_shows(cluster: Up, example: Example) -> None:
    text = re.sub(
        r"http://127\.0\.0\.1:808([1-3])",
        lambda match: cluster.urls[int(match[1]) - 1],
        example.text,
    )
    if example.language == "sh":
        program = ["bash", "-euo", "pipefail", "-O", "expand_aliases", "-c", text]
    else:
        program = [sys.executable, "-W", "error", "-c", text]
    ended = subprocess.run(
        program,
        cwd=cluster.data_dir.parent,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "DISTSYNC_URL": cluster.url,  # the default ports are taken by whoever tries README
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,  # a dozen commands, on a machine that may be slow
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    position = 0
    for fragment in example.expected:
        found = ended.stdout.find(fragment, position)
        assert found >= 0, f"no {fragment!r} in {ended.stdout[position:]!r}"
        position = found + len(fragment)


def test_there_are_examples_in_every_language() -> None:
    languages = [example.language for example in RUN_HERE]
    assert languages.count("sh") >= 3
    assert languages.count("python") >= 2
    assert sum(len(example.expected) for example in RUN_HERE) >= 10


def test_every_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z0-9-]+)", "\n".join(e.text for e in examples())))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named >= {"up", "test"}
    assert named <= targets


def test_every_link_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in links:
        path, _, heading = link.partition("#")
        text = (ROOT / path).read_text() if path else README
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = [re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings]
        assert not heading or heading in anchors, link
