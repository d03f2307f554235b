"""A register with a time to live: what one key of the cache is to its clients.

write {value, ttl_ms} -> ok; delete -> ok; read -> ok {value}; compare_and_set {expected, value,
ttl_ms, exact} -> ok | mismatch, which an `exact` one may get where nothing differs but the version.
Any other status had no effect. A value with a time to live may go by itself once that is over, less
what clocks and margins take away; and it is gone when that and `LATE_MS` are over since its writer
was told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from checker.history import Operation

LATE_MS = 7_000
"""What a value may outlive its time by: so long may a command of Redis be on its way, or a copy be
where its keeper cannot look at it."""

State: TypeAlias = tuple[Any, int, int]  # the value; when it may be gone, and is; 0 = never
EMPTY: State = (None, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheModel:
    """One key."""

    def initial(self) -> State:
        """Return the empty register."""
        return EMPTY

    def step(self, state: State, operation: Operation, latest_ns: int) -> Iterable[State]:
        """Return the states that may follow."""
        seen = set()
        starts = [state, EMPTY] if 0 < state[1] <= latest_ns else [state]
        if 0 < state[2] < operation.call_ns:
            starts = [EMPTY]
        for start in starts:
            for after in self._step(start, operation):
                if after not in seen:
                    seen.add(after)
                    yield after

    def _step(self, state: State, operation: Operation) -> Iterator[State]:
        result, args = operation.result, operation.args
        status = "ok" if result is None else result["status"]
        if status not in ("ok", "mismatch"):
            yield state
            return
        match operation.op:
            case "read":
                if result is None or result["value"] == state[0]:
                    yield state
            case "write":
                yield self._written(operation)
            case "delete":
                yield EMPTY
            case "compare_and_set":
                matches = state[0] == args["expected"]
                if status == "mismatch":
                    if not matches or args.get("exact"):
                        yield state
                elif matches:
                    yield self._written(operation)
                elif operation.pending:
                    yield state

    def _written(self, operation: Operation) -> State:
        value, ttl_ms = operation.args["value"], operation.args.get("ttl_ms", 0)
        if not ttl_ms:
            return value, 0, 0
        may_go_ns = operation.call_ns + int(ttl_ms * 960_000) - 100_000_000
        gone_ns = 0
        if not operation.pending:
            gone_ns = operation.return_ns + int(ttl_ms * 1_040_000) + LATE_MS * 1_000_000
        return value, max(1, may_go_ns), gone_ns
