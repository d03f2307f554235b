"""Pushing messages so that one that is enqueued again after a failure is in the queue once.

The client itself repeats a push under one request id for as long as it rides out an outage. Beyond
that the caller does not know whether the message is in the queue. If it enqueues the same message
again, that goes under the same request id, and the cluster does it once. A message whose push was
acknowledged is another matter: who enqueues it again wants it to run again, as with every other
broker of dramatiq.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import msgspec

from distsync.core import Core
from distsync.errors import DistSyncError
from distsync.identity import new_request_id
from distsync.integrations.dramatiq.failures import may_have_been_done
from distsync.queue_models import PushBody, Pushed, PushedMessage

__all__ = ["Push", "Pusher"]

_SAME_SECONDS: Final = 60.0  # enqueued again within this, it is the same request
_REPEATED_SECONDS: Final = 100.0  # a request is sent within this; it is remembered for 120
_MAX_DOUBTS: Final = 10_000
_ORDINARY_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One message, encoded."""

    queue: str
    message_id: str
    body: str
    delay_ms: int
    priority: int


@dataclass(frozen=True, slots=True)
class _Doubt:
    request_id: str
    since: float

    def is_good(self, now: float) -> bool:
        return now < self.since + _SAME_SECONDS


class Pusher:
    """Pushes the messages of one broker; its calls run in the client's loop."""

    def __init__(self) -> None:
        self._doubts: dict[bytes, _Doubt] = {}

    async def push(self, core: Core, push: Push) -> None:
        """Put a message into its queue.

        Raises: as `distsync.Queue.push`.
        """
        now = core.clock.now()
        doubt = self._doubts.pop(_digest(push), None) if self._doubts else None
        is_known = doubt is not None and doubt.is_good(now)
        if doubt is None or not is_known:
            doubt = _Doubt(_new_id(push.message_id), now)
        give_up_at = now + core.transport.timeout_seconds
        if is_known:
            give_up_at = min(give_up_at, doubt.since + _REPEATED_SECONDS)
        try:
            await core.transport.post(
                "/queue/push",
                _body(push, doubt.request_id),
                Pushed,
                needs_leader=False,
                give_up_at=give_up_at,
            )
        except BaseException as error:
            if is_known or not isinstance(error, DistSyncError) or may_have_been_done(error):
                self._remember(push, doubt, now)
            raise

    def _remember(self, push: Push, doubt: _Doubt, now: float) -> None:
        if len(self._doubts) >= _MAX_DOUBTS:
            self._doubts = {key: one for key, one in self._doubts.items() if one.is_good(now)}
        if len(self._doubts) < _MAX_DOUBTS:
            self._doubts[_digest(push)] = doubt


def _digest(push: Push) -> bytes:
    whole = msgspec.json.encode((push.queue, push.body, push.delay_ms, push.priority))
    return blake2b(whole, digest_size=16).digest()


def _new_id(message_id: str) -> str:
    """Return a request id in which the log of a node shows the message."""
    new = new_request_id()
    return f"{message_id}/{new}" if _ORDINARY_ID.fullmatch(message_id) else new


def _body(push: Push, request_id: str) -> PushBody:
    message = PushedMessage(body=push.body, delay_ms=push.delay_ms, priority=push.priority)
    return PushBody(
        queue=push.queue,
        messages=[msgspec.Raw(msgspec.json.encode(message))],
        request_id=request_id,
    )
