"""Is a concurrent history explained by some sequential one? Wing and Gong's search.

An operation takes effect at one instant between its call and its return; a pending one at any
instant after its call, or never. The search linearizes one operation after the other: next may
come any operation whose call lies before every return still open. A model says which states may
follow. Lowe's pruning: a pair (set of linearized operations, state) seen before is not entered
again. Completed operations are tried in the order of their returns and pending ones last, which
finds the explanation of an ordinary history almost without turning back.

The search is bounded. A history that is too large, or a search that exhausts its budget, is
UNKNOWN, and UNKNOWN is a failure like VIOLATION: what was not checked was not shown.

Sources: Wing, Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for
Linearizability" (2017); Herlihy, Wing, "Linearizability" (1990) for locality.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from checker.history import NEVER_NS, Operation, by_key

MAX_OPERATIONS_PER_KEY = 1_000
MAX_CLIENTS_PER_KEY = 10
DEFAULT_BUDGET = 400_000  # model steps a key

State = TypeVar("State", bound=Hashable)


class Model(Protocol[State]):
    """A sequential object."""

    def initial(self) -> State:
        """Return the state before the first operation."""
        ...

    def step(self, state: State, operation: Operation, latest_ns: int) -> Iterable[State]:
        """Return the states that may follow when `operation` takes effect next.

        It takes effect at its call or later and at `latest_ns` or earlier. A pending operation's
        result is free. Nothing is returned when the operation cannot take effect here.
        """
        ...


class Verdict(Enum):
    """UNKNOWN counts as a failure."""

    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The verdict on one key; `detail` shows how far an explanation reached."""

    verdict: Verdict
    key: str = ""
    steps: int = 0
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the history was shown to be linearizable."""
        return self.verdict is Verdict.LINEARIZABLE


class _Open:
    """The operations not yet linearized, as a doubly linked list of calls and returns in time.

    Entry 2i is the call of operation i, 2i + 1 its return (absent when pending). Taking an
    operation out and putting it back are O(1), as in a dancing-links search.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        order = []
        for number, operation in enumerate(operations):
            order.append((operation.call_ns, 0, 2 * number))
            if not operation.pending:
                order.append((operation.return_ns, 1, 2 * number + 1))
        # A call at the very instant of a return is concurrent with it.
        order.sort()
        self._operations = operations
        self._head = 2 * len(operations)
        self._next = [self._head] * (self._head + 1)
        self._previous = [self._head] * (self._head + 1)
        last = self._head
        for _, _, entry in order:
            self._next[last], self._previous[entry] = entry, last
            last = entry
        self._next[last], self._previous[self._head] = self._head, last
        self.completed = len(order) - len(operations)

    def candidates(self) -> tuple[list[int], int]:
        """Return operations that may come next, likely ones first, and the first open return."""
        completed: list[int] = []
        pending: list[int] = []
        entry = self._next[self._head]
        latest_ns = NEVER_NS
        while entry != self._head:
            number, is_return = divmod(entry, 2)
            if is_return:
                latest_ns = self._operations[number].return_ns
                break
            (pending if self._operations[number].pending else completed).append(number)
            entry = self._next[entry]
        completed.sort(key=lambda number: self._operations[number].return_ns)
        return completed + pending, latest_ns

    def take(self, number: int) -> None:
        self._unlink(2 * number)
        if not self._operations[number].pending:
            self._unlink(2 * number + 1)
            self.completed -= 1

    def put_back(self, number: int) -> None:
        if not self._operations[number].pending:
            self._relink(2 * number + 1)
            self.completed += 1
        self._relink(2 * number)

    def _unlink(self, entry: int) -> None:
        before, after = self._previous[entry], self._next[entry]
        self._next[before], self._previous[after] = after, before

    def _relink(self, entry: int) -> None:
        self._next[self._previous[entry]] = entry
        self._previous[self._next[entry]] = entry


def check(
    operations: Sequence[Operation], model: Model[State], *, budget: int = DEFAULT_BUDGET
) -> Report:
    """Check the history of one key."""
    key = operations[0].key if operations else ""
    clients = {operation.client for operation in operations}
    if len(operations) > MAX_OPERATIONS_PER_KEY or len(clients) > MAX_CLIENTS_PER_KEY:
        size = f"{len(operations)} operations of {len(clients)} clients"
        return Report(verdict=Verdict.UNKNOWN, key=key, detail=f"too large to check: {size}")
    return _Search(operations, model, budget).run(key)


class _Search:
    """Depth-first, on an explicit stack: a history is deeper than Python's recursion."""

    def __init__(self, operations: Sequence[Operation], model: Model[State], budget: int) -> None:
        self._operations = operations
        self._model = model
        self._budget = budget
        self._steps = 0
        self._open = _Open(operations)
        self._best: list[int] = []
        self._best_completed = -1

    def run(self, key: str) -> Report:
        path: list[int] = []
        linearized = 0
        seen: set[tuple[int, Hashable]] = set()
        branches = [self._successors(self._model.initial())]
        while branches:
            if self._open.completed == 0:
                return Report(verdict=Verdict.LINEARIZABLE, key=key, steps=self._steps)
            if self._steps > self._budget:
                return self._report(Verdict.UNKNOWN, key, f"gave up after {self._steps} steps")
            for number, state in branches[-1]:
                point = (linearized | 1 << number, state)
                if point not in seen:
                    seen.add(point)
                    linearized |= 1 << number
                    path.append(number)
                    self._open.take(number)
                    self._remember(path)
                    branches.append(self._successors(state))
                    break
            else:
                branches.pop()
                if path:
                    number = path.pop()
                    linearized ^= 1 << number
                    self._open.put_back(number)
        if self._open.completed == 0:
            return Report(verdict=Verdict.LINEARIZABLE, key=key, steps=self._steps)
        return self._report(Verdict.VIOLATION, key, "no order explains every result")

    def _successors(self, state: State) -> Iterator[tuple[int, State]]:
        # The list of open operations is read when the frame is on top, so it is the frame's own.
        candidates, latest_ns = self._open.candidates()
        for number in candidates:
            operation = self._operations[number]
            self._steps += 1
            for after in self._model.step(state, operation, latest_ns):
                # A pending operation that changes nothing is as good as one that never happened.
                if not (operation.pending and after == state):
                    yield number, after

    def _remember(self, path: list[int]) -> None:
        done = len(self._operations) - self._open.completed
        if done > self._best_completed:
            self._best_completed = done
            self._best = path.copy()

    def _report(self, verdict: Verdict, key: str, reason: str) -> Report:
        best = set(self._best)
        lines = [f"{reason} (key {key!r}); the longest explanation ends with"]
        lines += [f"  {self._operations[number].describe()}" for number in self._best[-8:]]
        lines.append("and cannot go on with")
        stuck = [
            operation
            for number, operation in enumerate(self._operations)
            if number not in best and not operation.pending
        ]
        stuck.sort(key=lambda operation: operation.return_ns)
        lines += [f"  {operation.describe()}" for operation in stuck[:8]]
        return Report(verdict=verdict, key=key, steps=self._steps, detail="\n".join(lines))


def check_history(
    operations: Iterable[Operation], model: Model[State], *, budget: int = DEFAULT_BUDGET
) -> list[Report]:
    """Check every key of a history by itself; one report a key, sorted by key."""
    return [check(part, model, budget=budget) for part in by_key(operations).values()]


def failures(reports: Iterable[Report]) -> list[Report]:
    """Return the reports that do not say LINEARIZABLE."""
    return [report for report in reports if not report.ok]
