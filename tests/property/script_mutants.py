"""Planting bugs in Lua scripts, each of which the comparison with a model must find.

For each, random walks on a real Redis with the changed script until one fails. The unchanged
scripts take the same walks first and must not fail.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from distsync_node.redis_link.scripts import SourceReader
from queue_harness import read_changed
from redis_server import RedisServer

Pick: TypeAlias = Callable[[Any], Any]
"""Takes one of a few things."""


@dataclass(frozen=True)
class Mutant:
    """A planted bug: in `path`, `old` becomes `new`."""

    name: str
    path: str
    old: str
    new: str

    def read(self, read: SourceReader) -> SourceReader:
        """Return a reader with the bug in.

        Raises:
            LookupError: the script has changed and the bug has no place any more.
        """

        def change(source: str) -> str:
            if source.count(self.old) != 1:
                raise LookupError(f"{self.name}: {self.path} has no single {self.old!r}")
            return source.replace(self.old, self.new)

        return read_changed(read, {self.path: change})


def take_steps(
    make_commands: Callable[[Pick], object],
    weights: Mapping[str, int],
    choices: random.Random,
    steps: int,
) -> None:
    """Call so many commands by chance."""
    commands = make_commands(lambda some: choices.choice(list(some)))
    names, counts = list(weights), list(weights.values())
    for _ in range(steps):
        getattr(commands, choices.choices(names, counts)[0])()


@contextlib.contextmanager
def quick_server() -> Iterator[RedisServer]:
    """A Redis that does not wait for its disk."""
    with (
        tempfile.TemporaryDirectory() as directory,
        RedisServer(Path(directory) / "redis", options={"appendfsync": "no"}) as server,
    ):
        yield server


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Bugs, the scripts into which they are planted, and the walk (of a seed) that finds them."""

    mutants: tuple[Mutant, ...]
    read: SourceReader
    walk: Callable[[RedisServer, SourceReader, int], None]
    walks: int  # at most for each bug
    walks_without: int

    def first_failure(
        self, server: RedisServer, mutant: Mutant | None = None, walks: int | None = None
    ) -> int | None:
        """Return the seed of the first walk that fails; None if none does."""
        read = self.read if mutant is None else mutant.read(self.read)
        for seed in range(walks or self.walks):
            try:
                self.walk(server, read, seed)
            except Exception:  # whatever a broken script leads to is a find
                return seed
        return None

    def main(self, words: list[str]) -> int:
        """Try all, or those with a word in their name; return how many were not found."""
        chosen = [one for one in self.mutants if not words or any(w in one.name for w in words)]
        missed = 0
        with quick_server() as server:
            seed = self.first_failure(server, walks=self.walks_without)
            if seed is not None:
                print(f"the scripts themselves fail, seed {seed}")
                return 1
            for mutant in chosen:
                started = time.monotonic()
                seed = self.first_failure(server, mutant)
                missed += seed is None
                found = "NOT FOUND" if seed is None else f"seed {seed}"
                print(f"{found:10}  {time.monotonic() - started:5.1f} s  {mutant.name}", flush=True)
        print(f"{len(chosen) - missed} of {len(chosen)} planted bugs found")
        return missed
