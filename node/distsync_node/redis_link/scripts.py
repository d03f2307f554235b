"""Lua scripts: read from a package, put together, named by their SHA-1.

A script's header is its contract, and the loader takes it at its word:

    -- KEYS: meta ready          the keys it touches; they are declared to Redis in this order, and
                                 `k.meta`, `k.ready` in the script
    -- lib: clock state (groups) files of scripts/lib put in front of it, in this order. One in
                                 parentheses is made on first use, by calling its name: its
                                 functions are those of the table `groups()`

No script names a key in any other way, so each key it touches is declared. Functions are made anew
each time Redis runs a script, which for those of all files costs as much as a push to a queue:
hence the second form, and hence `k`, one value to close over where there would be fifteen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TypeAlias

from distsync_node.errors import InvariantViolation

_KEYS_LINE = re.compile(r"^-- KEYS: (.+)$", re.MULTILINE)
_LIB_LINE = re.compile(r"^-- lib: (.+)$", re.MULTILINE)

SourceReader: TypeAlias = Callable[[str], str]
"""Gives the text of "push.lua" or "lib/state.lua"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One script as Redis gets it."""

    name: str
    key_names: tuple[str, ...]
    source: bytes
    sha: str


def reader_of(package: str) -> SourceReader:
    """Return what reads the folder `scripts` of a package."""
    folder = resources.files(package).joinpath("scripts")
    return lambda path: folder.joinpath(path).read_text(encoding="utf-8")


def assemble(name: str, read: SourceReader) -> Script:
    """Return the script `name` with what its header asks for."""
    text = read(f"{name}.lua")
    key_names = tuple(" ".join(_KEYS_LINE.findall(text)).split())
    libraries = " ".join(_LIB_LINE.findall(text)).split()
    if not key_names or not libraries:
        raise InvariantViolation(f"{name}.lua does not say its KEYS and lib")
    fields = ", ".join(f"{key} = KEYS[{i}]" for i, key in enumerate(key_names, 1))
    prelude = f"local k = {{{fields}}}\nlocal call = redis.call\n"
    parts = [prelude, *(_library(library, read) for library in libraries), text]
    source = "\n".join(parts).encode()
    sha = hashlib.sha1(source, usedforsecurity=False).hexdigest()
    return Script(name=name, key_names=key_names, source=source, sha=sha)


def assemble_all(names: Iterable[str], read: SourceReader) -> Mapping[str, Script]:
    """Return the scripts by name."""
    return {name: assemble(name, read) for name in names}


def _library(name: str, read: SourceReader) -> str:
    lazy = name.removeprefix("(").removesuffix(")")
    if lazy == name:
        return read(f"lib/{name}.lua")
    return (
        f"local {lazy}_made\n"
        f"local function {lazy}()\n"
        f"if {lazy}_made then return {lazy}_made end\n"
        f"local M = {{}}\n{lazy}_made = M\n"
        f"{read(f'lib/{lazy}.lua')}"
        f"return M\nend\n"
    )
