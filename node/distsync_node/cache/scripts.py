"""The Lua scripts of the cache: read from this package, put together, named by their SHA-1.

`load` and `put` are what `RedisLoad` and `RedisPut` ask for; `scripts/lib/record.lua` has the data
model. A script's header is its contract: its KEYS line names the keys, and its lib line the files
of `scripts/lib` that are put in front of it.

Why no time limit on a command: a home whose time is over is told from one that serves by the epoch
that reading a key leaves in Redis (the floor), in the same step in which it would write. That holds
however late a command comes and whatever any clock shows: where nothing is left of a key, nothing
is written either.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final
from urllib.parse import quote

from distsync_node.errors import InvariantViolation

SCRIPT_NAMES: Final = ("load", "put")
GRACE_MS: Final = 3_600_000
"""How long Redis remembers deletions, and keys that were only read."""

_KEYS_LINE = re.compile(r"^-- KEYS: (.+)$", re.MULTILINE)
_LIB_LINE = re.compile(r"^-- lib: (.+)$", re.MULTILINE)

SourceReader = Callable[[str], str]
"""Gives the text of "put.lua" or "lib/record.lua"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One script as Redis gets it."""

    name: str
    source: bytes
    sha: str


def redis_key(cluster_id: str, key: str) -> str:
    """Return the Redis key of a key of the cache of a cluster.

    Epochs begin anew with each cluster, so what another one left in the same Redis, floors above
    all, must not be in its way.
    """
    return f"dsc:{quote(cluster_id, safe='')}:{{{quote(key, safe='')}}}"


def read_source(path: str) -> str:
    """Return the text of a script of this package."""
    return resources.files(__package__).joinpath("scripts", path).read_text(encoding="utf-8")


def assemble(name: str, read: SourceReader = read_source) -> Script:
    """Return the script `name` with what its header asks for."""
    text = read(f"{name}.lua")
    keys = " ".join(_KEYS_LINE.findall(text)).split()
    libraries = " ".join(_LIB_LINE.findall(text)).split()
    if not keys or not libraries:
        raise InvariantViolation(f"{name}.lua does not say its KEYS and lib")
    fields = ", ".join(f"{key} = KEYS[{number}]" for number, key in enumerate(keys, 1))
    prelude = f"local k = {{{fields}}}\nlocal call = redis.call\n"
    parts = [prelude, *(read(f"lib/{library}.lua") for library in libraries), text]
    source = "\n".join(parts).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    return Script(name=name, source=source, sha=sha)


def load_scripts(read: SourceReader = read_source) -> Mapping[str, Script]:
    """Return all scripts by name."""
    return {name: assemble(name, read) for name in SCRIPT_NAMES}
