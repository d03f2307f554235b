"""What became of a write that was at its home.

It guarantees:

- A client is told that its write was made only under the version under which it was.
- A write whose home has moved is made again only if it certainly was not made, and will not be.

A doubt is what is left when the home of before does not know: the write was made under one version
or never. A home of now knows all that was made under older epochs, so the version that it has says
which; see the essay in `distsync_node.cache`.
"""

from __future__ import annotations

from distsync_node.cache.context import Context
from distsync_node.cache.judging import changed
from distsync_node.cache.lines.clients import Clients
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import AskUnderWay, Doubt, Line
from distsync_node.cache.messages import AskWrite, Committed
from distsync_node.cache.tables import HAS_RECORD, Input, next_state
from distsync_node.cache.types import (
    ABSENT,
    NOTHING,
    Code,
    Outcome,
    Record,
    Refused,
    Version,
    Written,
)
from distsync_node.errors import InvariantViolation


class Writes:
    """Ends the write that a line has at its home, or had."""

    def __init__(self, context: Context, held: HeldLines, clients: Clients) -> None:
        self._options = context.options
        self._held = held
        self._clients = clients

    def take_commit(
        self, line: Line, ask: AskUnderWay, committed: Committed, what: Input
    ) -> Record:
        """The change that was at the home is made: hold it and tell the client."""
        if not isinstance(ask.wish, AskWrite) or line.writer is None:
            raise InvariantViolation(f"{line.key} committed what nobody wrote")
        change = ask.wish.change
        record = changed(NOTHING, change, committed.version, ask.sent_ms)
        record = Record(record.version, record.value, record.expires_ms, committed.fences)
        held = next_state(line.state, what) in HAS_RECORD
        self._held.become(line, what, record if held else None)
        if held:
            line.grant = ask.number
            ttl_ms = change.ttl_ms if change.value is not None else 0
            line.serve_until_ms = self._options.serve_until_ms(ask.sent_ms, ttl_ms)
        self.answer(line, Written(committed.version))
        return record

    def answer(self, line: Line, outcome: Outcome) -> None:
        """Tell the client whose write is at the home, or was, if there is one."""
        op, line.writer, line.doubt = line.writer, None, None
        if op is not None:
            self._clients.answer(op, outcome)

    # --- When the home has moved --------------------------------------------------------------

    def given_up(self, line: Line, ask: AskUnderWay, version: Version) -> None:
        """It was made under that version or never: the home of now is asked which."""
        if not isinstance(ask.wish, AskWrite) or line.writer is None:
            raise InvariantViolation(f"{line.key} was not written and given up")
        keeps = next_state(line.state, Input.DENIED) in HAS_RECORD
        self._held.become(line, Input.DENIED, line.record if keeps else None)
        line.doubt = Doubt(ask.wish.change, version)
        if version == ABSENT:
            self._write_again(line, line.doubt)

    def judge_doubt(self, line: Line, version: Version) -> None:
        """A home has the key now under that version.

        It was told of all that was made under older epochs, and nothing of them is made any more.
        Behind a later write nobody can see.
        """
        doubt = line.doubt
        if doubt is None:
            return
        if version < doubt.version:
            self._write_again(line, doubt)
        elif version == doubt.version:
            self.answer(line, Written(version))
        else:
            self.answer(line, Refused(Code.UNKNOWN))

    def _write_again(self, line: Line, doubt: Doubt) -> None:
        if line.writer is not None:
            line.writers.insert(0, (line.writer, doubt.change))
        line.writer = line.doubt = None
