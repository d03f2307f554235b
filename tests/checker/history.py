"""Histories: what clients asked and what they were told, one JSON object a line.

    {"client": "c3", "key": "orders/42", "op": "acquire",
     "args": {"owner": "c3/7", "mode": "exclusive", "ttl_ms": 2000},
     "call_ns": 1200300400, "return_ns": 1200900400,
     "result": {"status": "granted", "token": 17}}

`call_ns` is taken before the first byte of the first attempt leaves, `return_ns` after the last
byte of the answer came; both in nanoseconds of one monotonic clock that all recorders share
(`CLOCK_MONOTONIC` on one machine). A request that is retried under the same request id is *one*
operation, from its first call to its last answer. `return_ns` and `result` are null when the
outcome stayed unknown: the operation may then have taken effect at any time after its call, or
never. Other fields are kept out of the check (`client` only counts clients).

The operations and results that a model understands are listed at the model (`models.py`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NEVER_NS = 1 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation on one key; `result` is None while its outcome is unknown."""

    client: str
    key: str
    op: str
    call_ns: int
    return_ns: int = NEVER_NS
    args: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None

    @property
    def pending(self) -> bool:
        """Whether its outcome is unknown."""
        return self.result is None

    def describe(self) -> str:
        """Return one readable line, times in milliseconds."""
        end = "never" if self.pending else f"{self.return_ns / 1e6:.1f}"
        args = " ".join(f"{name}={value}" for name, value in self.args.items())
        return (
            f"[{self.call_ns / 1e6:.1f} .. {end}] {self.client} {self.op}({args})"
            f" -> {dict(self.result) if self.result is not None else 'unknown'}"
        )


def to_line(operation: Operation) -> str:
    """Encode an operation as one line of JSON."""
    return json.dumps(
        {
            "client": operation.client,
            "key": operation.key,
            "op": operation.op,
            "args": dict(operation.args),
            "call_ns": operation.call_ns,
            "return_ns": None if operation.pending else operation.return_ns,
            "result": None if operation.result is None else dict(operation.result),
        },
        sort_keys=True,
    )


def from_line(line: str) -> Operation:
    """Decode one line. Raises ValueError or KeyError when it is not an operation."""
    record = json.loads(line)
    pending = record["return_ns"] is None or record["result"] is None
    operation = Operation(
        client=str(record["client"]),
        key=str(record["key"]),
        op=str(record["op"]),
        args=record["args"],
        call_ns=int(record["call_ns"]),
        return_ns=NEVER_NS if pending else int(record["return_ns"]),
        result=None if pending else record["result"],
    )
    if operation.return_ns < operation.call_ns:
        raise ValueError(f"returned before it was called: {line}")
    return operation


def write_history(path: Path, operations: Iterable[Operation]) -> None:
    """Write operations as JSON lines."""
    path.write_text("".join(to_line(operation) + "\n" for operation in operations))


def read_history(path: Path) -> list[Operation]:
    """Read JSON lines; blank lines are skipped."""
    return [from_line(line) for line in path.read_text().splitlines() if line.strip()]


def by_key(operations: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Partition a history: linearizability holds for all keys when it holds for each (Herlihy)."""
    parts: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        parts[operation.key].append(operation)
    return dict(sorted(parts.items()))
