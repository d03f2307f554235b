"""What scripts answer, as types."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Any, Final

from distsync_node.errors import BadRequest, InvariantViolation
from distsync_node.queues.checks import make_receipt
from distsync_node.queues.commands import decode, encode
from distsync_node.queues.types import (
    ClaimedMessage,
    MessageInfo,
    Order,
    Phase,
    Popped,
    PopStatus,
    QueueConfig,
    QueueStats,
)

_SCORE: Final = re.compile(r"[0-9]{1,20}(\.[0-9]+)?(e\+[0-9]{1,2})?")
MAX_CURSOR_BYTES: Final = 2048


def unexpected(name: str, reply: Any) -> InvariantViolation:
    """Return the error of a script that answered what it never does."""
    return InvariantViolation(f"script {name} answered {str(reply)[:200]}")


def wait_or_none(next_ms: float) -> int | None:
    """Return a wait; None where a script says -1."""
    return None if next_ms < 0 else int(next_ms)


def popped(reply: Sequence[Any], mark: str, attempt: str) -> Popped:
    """Return what pop.lua claimed; `mark` is that of the queue's receipts."""
    match reply:
        case [[status, messages, more, next_ms], *bodies]:
            pairs = zip(messages, bodies, strict=True)
            return Popped(
                messages=tuple(_claimed_message(one, body, mark) for one, body in pairs),
                status=PopStatus(status),
                more=more,
                next_ms=wait_or_none(next_ms),
                attempt=attempt,
            )
    raise unexpected("pop", reply)


def _claimed_message(told: Sequence[Any], body: bytes, mark: str) -> ClaimedMessage:
    message_id, token, visible_ms, deliveries, pushed_at_ms, priority, group = told
    return ClaimedMessage(
        id=message_id,
        receipt=make_receipt(message_id, token, mark),
        body=body,
        deliveries=deliveries,
        visible_ms=visible_ms,
        pushed_at_ms=pushed_at_ms,
        priority=priority,
        group=group,
    )


def message_info(told: Sequence[Any], body: bytes) -> MessageInfo:
    """Return a message of scripts/lib/describe.lua."""
    (
        message_id,
        phase,
        priority,
        group,
        size,
        deliveries,
        pushed_at_ms,
        due_at_ms,
        expires_at_ms,
        deadline_ms,
        died_at_ms,
    ) = told
    return MessageInfo(
        id=message_id,
        phase=Phase(phase),
        body=body,
        priority=priority,
        group=group,
        size=size,
        deliveries=deliveries,
        pushed_at_ms=pushed_at_ms,
        due_at_ms=due_at_ms,
        expires_at_ms=expires_at_ms,
        deadline_ms=deadline_ms,
        died_at_ms=died_at_ms,
    )


def message_infos(told: Sequence[Any], bodies: Sequence[bytes]) -> tuple[MessageInfo, ...]:
    """Return messages with their bodies."""
    return tuple(message_info(one, body) for one, body in zip(told, bodies, strict=True))


def queue_config(pairs: Sequence[Any]) -> QueueConfig:
    """Return a configuration from names and values in turn."""
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return QueueConfig(**{**fields, "paused": bool(fields["paused"])})


def queue_stats(pairs: Sequence[Any]) -> QueueStats:
    """Return statistics from names and values in turn."""
    fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
    config: list[Any] = []
    for name in [name for name in fields if name.startswith("config.")]:
        config += [name.removeprefix("config."), fields.pop(name)]
    return QueueStats(**fields, config=queue_config(config))


def write_cursor(order: Order, score: str, member: str) -> str | None:
    """Return where a page ended; None at the end of the list."""
    if not member:
        return None
    return base64.urlsafe_b64encode(encode((order.value, score, member))).decode().rstrip("=")


def read_cursor(cursor: str, order: Order) -> tuple[str, str]:
    """Return score and member of a cursor; of none, the start.

    Raises:
        BadRequest: it is not one of this order.
    """
    if not cursor:
        return "", ""
    try:
        data = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        match decode(data):
            case [order.value, str(score), str(member)] if (
                len(data) <= MAX_CURSOR_BYTES
                and member
                and (order is Order.GROUPED or _SCORE.fullmatch(score))
            ):
                return score, member
    except (binascii.Error, ValueError):
        pass
    raise BadRequest("cursor: is not one of this list", field="cursor")
