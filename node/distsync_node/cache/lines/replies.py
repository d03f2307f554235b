"""What a home answers, and what that does to the line that asked.

It guarantees:

- An answer counts only for the Ask under way, and under the lease that it was asked under, while
  that lasts; it renews the lease from when the Ask was sent first.
- A fill that was overtaken is served to those who waited before, and not installed.
- What a home of before granted is not held.
"""

from __future__ import annotations

from typing import assert_never

from distsync_node.cache.context import Context
from distsync_node.cache.lines.asks import Asks
from distsync_node.cache.lines.clients import Clients
from distsync_node.cache.lines.held import HeldLines
from distsync_node.cache.lines.line import AskUnderWay, Line
from distsync_node.cache.lines.write_backs import WriteBacks
from distsync_node.cache.lines.writes import Writes
from distsync_node.cache.messages import (
    AskOwnership,
    AskRead,
    Committed,
    Denied,
    GivenUp,
    Granted,
    Reply,
    WrittenBack,
)
from distsync_node.cache.tables import COMMITTING, HAS_RECORD, READABLE, Input, next_state
from distsync_node.cache.types import Code, PeerId, Refused, received


class Replies:
    """Takes them, one at a time."""

    def __init__(
        self,
        context: Context,
        held: HeldLines,
        clients: Clients,
        asks: Asks,
        writes: Writes,
        write_backs: WriteBacks,
    ) -> None:
        self._context = context
        self._options = context.options
        self._held = held
        self._clients = clients
        self._asks = asks
        self._writes = writes
        self._write_backs = write_backs

    def reply(self, source: PeerId, message: Reply) -> Line | None:
        """The home has answered an Ask; answers to others than the one under way are refused.

        Return the line if those who wait in it can go on.
        """
        line = self._asks.line_of(message.number)
        lease = self._held.lease_of(source)
        if line is None or line.ask is None or lease is None or line.ask.home != source:
            return None
        if line.ask.lease != message.lease or not self._held.is_under(lease, message.lease):
            return None
        ask = line.ask
        lease.extend(message.lease, ask.sent_ms, message.lease_ms)
        self._asks.end(line)
        match message.result:
            case Granted() as granted:
                self._granted(line, ask, granted)
            case Committed() as committed if ask.moved:
                self._writes.given_up(line, ask, committed.version)
            case Committed() as committed:
                self._committed(line, ask, committed)
            case GivenUp() as given_up:
                self._writes.given_up(line, ask, given_up.version)
                if not ask.moved:
                    self._held.park(line)  # until there is another ring
                    return None
            case WrittenBack():
                self._write_backs.end(line, ask)
            case Denied() as denied:
                self._denied(line, Refused(denied.code, denied.version, denied.newest))
            case _:
                assert_never(message.result)
        return line

    def _granted(self, line: Line, ask: AskUnderWay, granted: Granted) -> None:
        copy = granted.copy
        record = received(copy, self._context.now_ms)
        what = Input.FILL_EXCLUSIVE if granted.exclusive else Input.FILL_SHARED
        if isinstance(ask.wish, AskOwnership):
            what = Input.OWNERSHIP
        installs = next_state(line.state, what) in HAS_RECORD
        if isinstance(ask.wish, AskRead):
            self._clients.answer_readers(line, self._clients.found(record, hit=False))
            self._writes.judge_doubt(line, record.version)
        self._held.become(line, what, record if installs else None)
        line.join_readers()
        if installs:
            line.grant = ask.number
            line.block = granted.block or (0, 0, 0)
            line.serve_until_ms = self._options.serve_until_ms(ask.sent_ms, copy.remaining_ms)
            if granted.block is not None:
                line.serve_until_ms = record.expires_ms  # its owner alone says when that is over
            self._held.lru.touch(line.key)

    def _committed(self, line: Line, ask: AskUnderWay, committed: Committed) -> None:
        what = Input.COMMITTED_DIRTY if committed.dirty else Input.COMMITTED_CLEAN
        self._writes.take_commit(line, ask, committed, what)
        self._held.lru.touch(line.key)

    def _denied(self, line: Line, refusal: Refused) -> None:
        was_write = line.state in COMMITTING
        was_write_back = line.state in READABLE
        keeps = next_state(line.state, Input.DENIED) in HAS_RECORD
        self._held.become(line, Input.DENIED, line.record if keeps else None)
        if was_write and line.writer is not None:
            self._writes.answer(line, refusal)
        elif was_write_back:
            self._write_backs.arm_idle(line)
        else:
            line.join_readers()
            self._clients.answer_readers(line, refusal)
            while line.writers:
                self._clients.answer(line.writers.pop(0)[0], refusal)
            if line.doubt is not None:
                self._writes.answer(line, Refused(Code.UNKNOWN))
