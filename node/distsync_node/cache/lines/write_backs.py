"""Lines that Redis is to have, and lines that go for want of room.

It guarantees:

- A line in M goes only when Redis has its value; one in E or S goes at once, and its home is told.
- What was written during a write-back is dirty after it.
- No line goes for want of room while somebody waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

from distsync_node.cache.context import Context
from distsync_node.cache.kept import KeptCopies
from distsync_node.cache.lines.asks import Asks, TimerName
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import AskUnderWay, Line
from distsync_node.cache.messages import AskWriteBack, Dropped
from distsync_node.cache.misses import Miss
from distsync_node.cache.tables import DIRTY, HAS_RECORD, READABLE, Input, LineState, next_state
from distsync_node.cache.timers import Timers
from distsync_node.errors import InvariantViolation


class WriteBacks:
    """Of all lines of a node; the homes carry them out."""

    def __init__(
        self,
        context: Context,
        kept: KeptCopies,
        homed: Callable[[], int],
        held: HeldLines,
        asks: Asks,
        timers: Timers[TimerName],
    ) -> None:
        """`homed` tells how many bytes the home of this node holds, as the second place of them."""
        self._context = context
        self._options = context.options
        self._kept = kept
        self._homed = homed
        self._held = held
        self._asks = asks
        self._timers = timers

    def begin(self, line: Line, *, stays: bool) -> None:
        """Have Redis take a dirty line: to drop it then, or to hold it as clean."""
        if line.record is None or line.home is None or not self._held.has_lease(line.home):
            return
        copy = line.record.copy(self._context.now_ms) if line.is_own else None
        what = Input.ASK_CLEANING if stays else Input.ASK_EVICTION
        self._asks.ask(line, what, AskWriteBack(line.grant, copy, stays))

    def end(self, line: Line, ask: AskUnderWay) -> None:
        """Redis has what was sent."""
        wish = ask.wish
        if not isinstance(wish, AskWriteBack):
            raise InvariantViolation(f"{line.key} was written back unasked")
        newer = (
            wish.copy is not None
            and line.record is not None
            and line.record.version > wish.copy.version
        )
        what = Input.WRITTEN_BACK if wish.stays else Input.EVICTED
        if newer:
            what = Input.WRITTEN_BACK_OLDER
            line.dirty_since_ms = ask.sent_ms
        keeps = next_state(line.state, what) in HAS_RECORD
        self._held.become(line, what, line.record if keeps else None)
        self.arm_idle(line)
        if not keeps:
            self._tell_dropped(line)

    # --- When nobody writes for a while -------------------------------------------------------

    def arm_idle(self, line: Line) -> None:
        """Nobody but this node knows when such a line has not been written for a while."""
        if line.state in DIRTY and line.is_own:
            idle_ms = self._options.write_back_at_ms(line.written_ms, line.dirty_since_ms)
            retry_ms = self._context.now_ms + self._options.redis_retry_ms
            self._timers.soonest(("idle", line.key), max(idle_ms, retry_ms))

    def write_back_idle(self, key: str) -> None:
        """The time of a line has come, unless it was written since."""
        line = self._held.lru.get(key)
        if line is None or line.state is not LineState.MODIFIED:
            return
        at_ms = self._options.write_back_at_ms(line.written_ms, line.dirty_since_ms)
        if at_ms > self._context.now_ms:
            self.arm_idle(line)
        else:
            self.begin(line, stays=True)

    # --- Room ---------------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Evict the least recently used: clean ones now, dirty ones once they are in Redis.

        Return whether there were any.
        """
        held = self._held
        beside = self._kept.bytes + self._homed()
        chosen = held.lru.over_limit(self._may_go, held.leaving_bytes, beside)
        for key in chosen:
            line = held.lru.get(key)
            if line is None:
                continue
            held.evictions += 1
            held.gone.note(line.key, Miss.EVICTED)
            if line.state is LineState.MODIFIED:
                self.begin(line, stays=False)
            else:
                held.become(line, Input.DROP, None)
                self._tell_dropped(line)
                held.settle(line)
        return bool(chosen)

    def _tell_dropped(self, line: Line) -> None:
        lease = None if line.home is None else self._held.leases.get(line.home)
        if lease is not None and lease.number:
            self._context.send(lease.home, Dropped(lease.number, line.key, line.grant))

    def _may_go(self, line: Line) -> bool:
        return line.ask is None and not line.has_calls and line.state in READABLE

    def evict_oldest(self, size: int) -> None:
        """Begin to evict so many bytes of dirty lines, those first that were written first."""
        while size > 0 and self._held.modified:
            line = self._held.first_modified()
            size -= line.size
            self.begin(line, stays=False)

    def evict_more(self) -> None:
        """Begin to evict dirty lines, as many as may be under way at once."""
        for _ in range(self._options.write_backs_at_once - len(self._asks)):
            if not self._held.modified:
                return
            self.begin(self._held.first_modified(), stays=False)
