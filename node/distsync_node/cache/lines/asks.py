"""What a node has asked of homes, and has had no answer to.

It guarantees:

- A number is used once, for an Ask or for a lease, and later ones are higher; nothing below `floor`
  is under way.
- An Ask is sent again as it is, under the number and lease that it had first, until it is answered
  or given up.
"""

from __future__ import annotations

from typing import TypeAlias

from distsync_node.cache.context import Context
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import AskUnderWay, Line
from distsync_node.cache.messages import Ask, Wish
from distsync_node.cache.tables import HAS_RECORD, Input, next_state
from distsync_node.cache.timers import Timers
from distsync_node.errors import InvariantViolation

TimerName: TypeAlias = tuple[str, str | int]


class Asks:
    """Those of all lines; who waits sends again, by the timer `ask` of the number."""

    def __init__(self, context: Context, held: HeldLines, timers: Timers[TimerName]) -> None:
        self._context = context
        self._options = context.options
        self._held = held
        self._timers = timers
        self._last_number = 0
        self._keys: dict[int, str] = {}  # of those under way, in the order of numbers

    def __len__(self) -> int:
        return len(self._keys)

    def next_number(self) -> int:
        """Return a number that was not used yet."""
        self._last_number += 1
        return self._last_number

    def floor(self) -> int:
        """Return the lowest number under way, or that is still to come."""
        return next(iter(self._keys), self._last_number + 1)

    def line_of(self, number: int) -> Line | None:
        """Return the line that waits for the answer to that number."""
        return self._held.lru.get(self._keys.get(number, ""))

    def ask(self, line: Line, what: Input, wish: Wish) -> None:
        """Ask the home of the line, whose lease lasts."""
        if line.home is None:
            raise InvariantViolation(f"{line.key} has no home to ask")
        keeps = next_state(line.state, what) in HAS_RECORD
        self._held.become(line, what, line.record if keeps else None)
        self._held.unpark(line)
        number = self.next_number()
        lease = self._held.leases[line.home]
        line.ask = AskUnderWay(
            number=number,
            home=line.home,
            wish=wish,
            lease=lease.number,
            sent_ms=self._context.now_ms,
        )
        self._keys[number] = line.key
        self.send(line, line.ask)

    def send(self, line: Line, ask: AskUnderWay) -> None:
        """Send it, for the first time or again."""
        message = Ask(ask.lease, ask.number, self.floor(), line.key, ask.wish)
        self._context.send(ask.home, message)
        self._timers.set(("ask", ask.number), self._context.now_ms + self._options.resend_ms)

    def end(self, line: Line) -> None:
        """It was answered, or nobody waits for the answer: whatever comes is refused."""
        if line.ask is not None:
            del self._keys[line.ask.number]
            self._timers.cancel(("ask", line.ask.number))
            line.ask = None
