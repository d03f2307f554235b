"""What must hold between any two steps, seen from outside, with true time and all clocks.

1. One writer, and then no reader: if a node could serve a line as E or M at this moment, no other
   node could serve that line at all.
2. Equal copies: all lines of a key that could be served at this moment have the same version, and
   none is older than what a client was told, by a write or by a read.
3. Two places: when a client is told of a write, it is in two processes or in Redis.
4. Redis never goes back (`redis.py`), and neither do versions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distsync_node.cache.events import ClientRead, ClientWrite, Event, PeerMessage
from distsync_node.cache.invariants import check_node
from distsync_node.cache.lines.line import Line
from distsync_node.cache.tables import OWNED, READABLE
from distsync_node.cache.types import (
    ABSENT,
    Code,
    Durability,
    Found,
    Missing,
    OpId,
    Outcome,
    Refused,
    Version,
)
from sim.cache.host import Host
from sim.kernel import Violation

if TYPE_CHECKING:
    from sim.cache.world import World


class CacheChecks:
    """Looks at all nodes after each step of one."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.told: dict[str, Version] = {}  # the newest version any client was told
        self.died_with: dict[str, Version] = {}  # the newest version that went with a node
        self._steps = 0

    def dies(self, host: Host) -> None:
        """A node is about to crash."""
        for key in self._world.keys:
            version = self._held(host, key)
            self.died_with[key] = max(self.died_with.get(key, ABSENT), version)

    def after_step(self, host: Host, event: Event) -> None:
        """A node has taken an event."""
        self._steps += 1
        match event:
            case ClientRead(key=key) | ClientWrite(key=key):
                self._check_key(key)
            case PeerMessage(message=message):
                key = getattr(message, "key", None)
                if key is not None:
                    self._check_key(key)
            case _:
                if self._steps % 8 == 0:
                    for key in self._world.keys:
                        self._check_key(key)
        if self._steps % 16 == 0:
            check_node(host.node)

    def _live(self, host: Host, key: str) -> Line | None:
        """Return the line that the host could serve now."""
        line = host.node.lines.held.lru.get(key)
        if line is None or line.state not in READABLE or line.home is None:
            return None
        if not host.alive or host.closed:
            return None
        now_ms, context = host.now_ms, host.node.context
        lease = host.node.lines.held.leases.get(line.home)
        if (
            context.retired
            or context.lease_epoch != context.epoch
            or now_ms >= context.lease_ends_ms
            or lease is None
            or not lease.is_valid(now_ms)
            or 0 < line.serve_until_ms <= now_ms
        ):
            return None
        return line

    def _check_key(self, key: str) -> None:
        live = {
            name: line
            for name, host in self._world.hosts.items()
            if (line := self._live(host, key)) is not None
        }
        if not live:
            return
        owners = [name for name, line in live.items() if line.state in OWNED]
        if owners and len(live) > 1:
            states = {name: line.state.value for name, line in live.items()}
            raise Violation("cache.one_writer", f"{key}: {states}")
        versions = {line.record.version for line in live.values() if line.record is not None}
        if len(versions) > 1:
            raise Violation("cache.equal_copies", f"{key}: {versions}")
        if self._is_stale(key, live, min(versions)):
            told = self.told[key]
            raise Violation("cache.stale_copy", f"{key}: {live.keys()} {versions} < {told}")

    def _is_stale(self, key: str, live: dict[str, Line], oldest: Version) -> bool:
        world = self._world
        if oldest >= self.told.get(key, ABSENT) or key in world.lossy:
            return False
        # The version of a deletion is forgotten with it.
        values = [line.record.value for line in live.values() if line.record is not None]
        return key not in world.redis.forgot or any(value is not None for value in values)

    def answered(self, host: Host, op: OpId, outcome: Outcome) -> None:
        """A client is told something."""
        world = self._world
        key = world.keys_of_calls.pop((host.name, host.incarnation, op))
        if isinstance(outcome, Found | Missing):
            self.told[key] = max(self.told.get(key, ABSENT), outcome.version)
        elif isinstance(outcome, Refused):
            self._check_refusal(key, outcome.code)
        else:
            if outcome.version <= self.told.get(key, ABSENT) and key not in world.lossy:
                # Two writes may be answered in any order, but not with one version.
                world.kernel.faults["answered_late"] += 1
            self.told[key] = max(self.told.get(key, ABSENT), outcome.version)
            if world.mode is not Durability.LOCAL:
                self._check_places(key, outcome.version)

    def _check_refusal(self, key: str, code: Code) -> None:
        """When nodes die one at a time, nothing is lost that a client was told of.

        A write that was begun and never made may leave its mark in Redis: should both its places
        die before anybody looks at the key, nobody knows that there is nothing to lose.
        """
        world = self._world
        if code is not Code.LINE_LOST or not world.profile.one_at_a_time:
            return
        known = world.redis.keys.get(key)
        if known is None or known.version < self.told.get(key, ABSENT):
            raise Violation("cache.line_lost", f"{key}: all who died had said that they may")
        world.kernel.faults["lost_nothing"] += 1

    def _check_places(self, key: str, version: Version) -> None:
        known = self._world.redis.keys.get(key)
        if known is not None and known.version >= version:
            return
        places = [name for name, host in self._world.hosts.items() if self._has(host, key, version)]
        if self.died_with.get(key, ABSENT) >= version:
            places.append("a node that died since")
        if len(places) < 2:
            raise Violation("cache.two_places", f"{key} {version} is in {places}")

    def _has(self, host: Host, key: str, version: Version) -> bool:
        return host.alive and self._held(host, key) >= version

    def _held(self, host: Host, key: str) -> Version:
        line = host.node.lines.held.lru.get(key)
        kept = host.node.kept.version(key) or ABSENT
        entry = host.node.home.directory.entries.get(key)
        held = [kept]
        if line is not None and line.record is not None:
            held.append(line.record.version)
        if entry is not None and entry.dirty:
            held.append(entry.record.version)
        return max(held)
