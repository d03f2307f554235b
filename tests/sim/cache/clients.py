"""Clients: one call at a time, at any node, with patience; what they saw is the history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checker.history import Operation
from distsync_node.cache.types import (
    ABSENT,
    Change,
    Code,
    Found,
    Missing,
    OpId,
    Outcome,
    Refused,
    Version,
    Written,
)
from sim.kernel import US_PER_MS

if TYPE_CHECKING:
    from sim.cache.host import Host
    from sim.cache.world import World

FORGOTTEN_MS = 12_000
COMPARED = 0.34  # of the writes
STATUS = {
    Code.VERSION_MISMATCH: "mismatch",
    Code.LINE_LOST: "line_lost",
}


class Call:
    """One call and its place in the history."""

    def __init__(self, client: Client, key: str, op: str, args: dict[str, Any]) -> None:
        self.client = client
        self.key = key
        self.op = op
        self.args = args
        self.call_us = client.world.kernel.now_us
        self.return_us = 0
        self.result: dict[str, Any] | None = None
        self.ended = False
        self.outcome: Outcome | None = None

    def operation(self) -> Operation:
        """Return it for the checker."""
        operation = Operation(
            client=self.client.name,
            key=self.key,
            op=self.op,
            call_ns=self.call_us * 1_000,
            args=self.args,
        )
        if self.result is None:
            return operation
        return Operation(
            client=self.client.name,
            key=self.key,
            op=self.op,
            call_ns=self.call_us * 1_000,
            return_ns=self.return_us * 1_000,
            args=self.args,
            result=self.result,
        )


class Client:
    """Reads, writes, deletes and compares, and remembers the versions it saw."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self._rng = world.kernel.rng(name)
        self._seen: dict[str, tuple[Version, str | None]] = {}
        self._count = 0
        self._last: tuple[Host, str] | None = None
        self.call: Call | None = None
        self.calls: list[Call] = []

    def start(self) -> None:
        """Begin."""
        self._later()

    def _later(self) -> None:
        low, high = (self.world.slower * ms for ms in self.world.profile.think_ms)
        delay_us = self._rng.randint(low * US_PER_MS, high * US_PER_MS)
        self.world.kernel.after(delay_us, self._act)

    def _act(self) -> None:
        if self.world.is_over:
            return
        world, rng = self.world, self._rng
        hosts = [host for host in world.hosts.values() if host.alive]
        if not hosts:
            self._later()
            return
        if self._last is None or not self._last[0].alive or rng.random() >= world.profile.again:
            self._last = rng.choice(hosts), rng.choice(world.keys)
        host, key = self._last
        drawn, profile = rng.random(), world.profile
        if drawn < profile.deletions:
            self._write(host, key, "delete", Change(None), {})
        elif drawn < profile.deletions + profile.writes:
            self._write_value(host, key, compare=rng.random() < COMPARED)
        else:
            self.read(host, key)

    def _write_value(self, host: Host, key: str, *, compare: bool) -> None:
        self._count += 1
        value = f"{self.name}.{self._count}"
        args: dict[str, Any] = {"value": value}
        ttl_ms = 0
        if self.world.key_has_ttl(key) and self._rng.random() < 0.5:
            ttl_ms = args["ttl_ms"] = self._rng.choice((150, 600, 2_500))
        if_version = None
        if compare and key in self._seen:
            if_version, args["expected"] = self._seen[key]
            # Under the version of a deletion it also loses to another deletion.
            args["exact"] = args["expected"] is None and if_version != ABSENT
        change = Change(self.world.padded(value), ttl_ms, if_version)
        op = "write" if if_version is None else "compare_and_set"
        self._write(host, key, op, change, args)

    def read(self, host: Host, key: str) -> Call:
        """Read at a host."""
        call = self._begin(host, key, "read", {})
        op = host.read(key, lambda outcome: self._done(call, outcome))
        self._wait(call, host, op)
        return call

    def _write(self, host: Host, key: str, name: str, change: Change, args: dict[str, Any]) -> None:
        call = self._begin(host, key, name, args)
        op = host.write(key, change, lambda outcome: self._done(call, outcome))
        self._wait(call, host, op)

    def _begin(self, host: Host, key: str, op: str, args: dict[str, Any]) -> Call:
        self.call = call = Call(self, key, op, args)
        self.calls.append(call)
        return call

    def _wait(self, call: Call, host: Host, op: OpId) -> None:
        kernel = self.world.kernel
        patience_ms = self._rng.choice(self.world.profile.patience_ms)
        kernel.after(patience_ms * US_PER_MS, host.gone, host.incarnation, op)
        kernel.after(FORGOTTEN_MS * US_PER_MS, self._forget, call)

    def _forget(self, call: Call) -> None:
        """No answer will come: the node died."""
        if not call.ended:
            call.ended = True
            self._later()

    def _done(self, call: Call, outcome: Outcome) -> None:
        if call.ended:
            return
        call.ended = True
        call.outcome = outcome
        call.return_us = self.world.kernel.now_us
        call.result = self._result(call, outcome)
        self._later()

    def _result(self, call: Call, outcome: Outcome) -> dict[str, Any] | None:
        counts = self.world.outcomes
        match outcome:
            case Found():
                value = outcome.value.decode().split(" ")[0]
                self._seen[call.key] = (outcome.version, value)
                counts["hit" if outcome.hit else "found"] += 1
                return {"status": "ok", "value": value}
            case Missing():
                is_exact = self._rng.random() < 0.5
                self._seen[call.key] = (outcome.version if is_exact else ABSENT, None)
                counts["missing"] += 1
                return {"status": "ok", "value": None}
            case Written():
                self._seen[call.key] = (outcome.version, call.args.get("value"))
                if call.op == "delete":
                    self._seen[call.key] = (ABSENT, None)
                counts["written"] += 1
                return {"status": "ok"}
            case Refused(code=code):
                counts[code.value] += 1
                if code is Code.UNKNOWN:
                    return None
                return {"status": STATUS.get(code, "refused")}
