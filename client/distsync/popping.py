"""Claiming messages, with a wait of any length.

The claims count from before the request was sent, which after a wait is long ago. So those that are
a quarter over when they come are extended before anybody sees them.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from distsync.backoff import AnyBackoff
from distsync.claims import Keeper
from distsync.clock import sleep_until
from distsync.durations import to_milliseconds
from distsync.errors import DistSyncError, StaleReceipt
from distsync.lease import Span
from distsync.messages import ClaimedMessage
from distsync.queue_calls import QueueCalls
from distsync.queue_models import PopAnswer
from distsync.transport import Reply

__all__ = ["Popper"]

_log = logging.getLogger("distsync")

_LONGEST_SECONDS: Final = 600.0
_STALE_RATIO: Final = 0.25
_PAUSE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Popper:
    """Claims messages of one queue in one way."""

    calls: QueueCalls
    keeper: Keeper
    visibility_ms: int
    backoff: AnyBackoff

    async def pop(
        self, count: int, until: float | None, ack: Sequence[ClaimedMessage] = ()
    ) -> list[ClaimedMessage]:
        """Claim up to `count` messages; wait until there is one or the clock shows `until`.

        Messages `ack` are acknowledged by the first request.
        If this is cancelled, what was claimed goes back (`QueueCalls.pop`).
        """
        clock = self.calls.core.clock
        for message in ack:
            message.let_go()  # an extension would find that its claim has ended
        while True:
            left = _LONGEST_SECONDS if until is None else max(0.0, until - clock.now())
            wait_ms = to_milliseconds(min(left, _LONGEST_SECONDS))
            receipts = [message.receipt for message in ack]
            reply = await self.calls.pop(count, wait_ms, self.visibility_ms, receipts)
            for message in ack:
                message.settled_elsewhere(stale=message.receipt in reply.value.stale)
            ack = ()
            if reply.value.messages:
                return await self._fresh(reply)
            now = clock.now()
            if until is not None and now >= until:
                return []
            if now < reply.sent_at + wait_ms / 2000:  # a node that stops answers early
                pause = _PAUSE_SECONDS * (0.5 + random.random())
                await sleep_until(clock, now + pause if until is None else min(now + pause, until))

    async def _fresh(self, reply: Reply[PopAnswer]) -> list[ClaimedMessage]:
        clock = self.calls.core.clock
        messages = [
            ClaimedMessage(
                self.calls,
                self.keeper,
                popped,
                span=Span(reply.sent_at, popped.visible_ms / 1000),
                visibility_ms=self.visibility_ms,
                backoff=self.backoff,
            )
            for popped in reply.value.messages
        ]
        if clock.now() - reply.sent_at <= self.visibility_ms / 1000 * _STALE_RATIO:
            return messages
        receipts = [message.receipt for message in messages]
        asked = Span(clock.now(), self.visibility_ms / 1000)
        stale: set[str] = set()
        try:
            span = await self.calls.extend(
                receipts, self.visibility_ms, give_up_at=asked.sent_at + asked.seconds
            )
        except StaleReceipt as error:
            span = asked
            stale = set(error.stale) or set(receipts)
        except DistSyncError as error:
            _log.warning("claims of %s could not be extended: %s", self.calls.name, error)
            return [message for message in messages if message.expires_in()]
        except asyncio.CancelledError:
            self.calls.give_back(receipts)
            raise
        for message in messages:
            message.claim.extended(span)
        return [message for message in messages if message.receipt not in stale]
