"""What must hold in one node between any two events, checked from scratch: for tests."""

from __future__ import annotations

from typing import NoReturn

from distsync_node.cache.home.entry import Entry
from distsync_node.cache.node import CacheNode
from distsync_node.cache.tables import (
    COMMITTING,
    DIRTY,
    HAS_RECORD,
    OWNED,
    READABLE,
    LineState,
)
from distsync_node.errors import InvariantViolation


def check_node(node: CacheNode) -> None:
    """Raise InvariantViolation if anything that must hold does not."""
    _check_lines(node)
    _check_home(node)
    if node.kept.bytes != sum(kept.record.size for _, kept in node.kept.items()):
        _fail("kept copies are miscounted")


def _fail(what: str) -> NoReturn:
    raise InvariantViolation(what)


def _check_lines(node: CacheNode) -> None:
    lines = node.lines.held
    dirty = 0
    for key, line in lines.lru.items():
        if line.key != key:
            _fail(f"line {key} is filed under another key")
        if (line.record is not None) != (line.state in HAS_RECORD):
            _fail(f"line {key} is {line.state.value} with {line.record!r:.60}")
        resting = line.state is LineState.INVALID or line.state in READABLE - {
            LineState.CLEANING,
            LineState.WRITING_BACK,
            LineState.WRITING_BACK_SHARED,
        }
        if resting == (line.ask is not None):
            _fail(f"line {key} is {line.state.value} and asks {line.ask}")
        if (line.writer is not None) != (line.state in COMMITTING or line.doubt is not None):
            _fail(f"line {key} is {line.state.value} with writer {line.writer}")
        if line.doubt is not None and line.state in COMMITTING:
            _fail(f"line {key} is {line.state.value} with the write of before in doubt")
        if line.late_readers and line.state is not LineState.FILLING_INVALIDATED:
            _fail(f"line {key} is {line.state.value} with late readers")
        if line.is_own and line.state not in OWNED:
            _fail(f"line {key} is {line.state.value} with versions of its owner")
        if line.state in DIRTY:
            dirty += line.size
    if lines.lru.bytes != lines.lru.counted_bytes():
        _fail("bytes of lines are miscounted")
    if lines.modified.keys() != {
        key for key, line in lines.lru.items() if line.state is LineState.MODIFIED
    }:
        _fail(f"lines in M are not {list(lines.modified)}")
    if lines.dirty_bytes != dirty:
        _fail(f"dirty bytes are {dirty}, counted {lines.dirty_bytes}")


def _check_home(node: CacheNode) -> None:
    home = node.home.directory
    for key, entry in home.entries.items():
        _check_entry(node, key, entry)
    if home.dirty_bytes != sum(one.record.size for one in home.entries.values() if one.dirty):
        _fail("dirty bytes of the home are miscounted")
    entries = home.entries.items()
    if home.unwritten.keys() != {key for key, one in entries if one.dirty and not one.flush}:
        _fail(f"not being written back are not {list(home.unwritten)}")
    if home.flushing != {key for key, one in entries if one.flush}:
        _fail(f"being written back are not {home.flushing}")
    if home.deciding != {key for key, one in entries if one.txn and one.txn.version is not None}:
        _fail(f"about to be committed are not {home.deciding}")
    for holder, lease in home.leases.by_holder.items():
        held = {key for key, entry in home.entries.items() if holder in entry.holders()}
        if held != lease.keys:
            _fail(f"{holder} holds {held}, its lease says {lease.keys}")


def _check_entry(node: CacheNode, key: str, entry: Entry) -> None:
    context = node.context
    if entry.key != key or context.home_of(key) != context.me:
        _fail(f"entry {key} is in the wrong place")
    if entry.owner is not None and entry.sharers:
        _fail(f"entry {key} has an owner and sharers")
    if entry.dirty and not (entry.has_value and entry.loaded):
        _fail(f"entry {key} is dirty without a value")
    if entry.lost and (entry.dirty or entry.holders()):
        _fail(f"entry {key} is lost and held")
    for holder in entry.holders():
        if holder not in node.home.directory.leases.by_holder:
            _fail(f"entry {key} is held by {holder} without a lease")
    if entry.txn is None and entry.queue:
        _fail(f"entry {key} has a queue and no transaction")
