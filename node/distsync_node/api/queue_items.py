"""Items of batches about queues, as they come in requests.

A decoder stops at the first field that is wrong. Whoever sent a hundred items wants to hear of each
that is: of a batch it refused, the items are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from distsync_node.api.call import ItemCheck, field_error
from distsync_node.api.queue_schemas import MessageToPush
from distsync_node.queues import checks, limits
from distsync_node.queues.types import NewMessage


def to_message(given: MessageToPush) -> NewMessage:
    """Return the message of a push."""
    return NewMessage(
        body=given.body.encode(),
        delay_ms=given.delay_ms,
        priority=given.priority,
        ttl_ms=given.ttl_ms,
        dedupe_id=given.dedupe_id,
        group=given.group,
    )


def check_messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the `errors` of a push that was refused."""

    def check(given: Any, where: str) -> None:
        try:
            message = to_message(msgspec.convert(given, MessageToPush))
        except msgspec.ValidationError as error:
            raise field_error(error, where) from None
        checks.check_message(message, where)

    return _check_items(body, "messages", check)


def check_receipts(name: str) -> ItemCheck:
    """Return what finds the `errors` of a call that was refused and has receipts under a name."""

    def check_items(body: Mapping[str, Any]) -> list[dict[str, Any]]:
        queue = body.get("queue")
        if not isinstance(queue, str):
            return []
        mark = checks.queue_mark(queue)

        def check(given: Any, where: str) -> None:
            try:
                receipt = msgspec.convert(given, str)
            except msgspec.ValidationError as error:
                raise field_error(error, where) from None
            checks.split_receipt(receipt, mark, where)

        return _check_items(body, name, check)

    return check_items


def _check_items(
    body: Mapping[str, Any], name: str, check: Callable[[Any, str], None]
) -> list[dict[str, Any]]:
    items = body.get(name)
    if not isinstance(items, list):
        return []
    return checks.tell_items(checks.refused_items(items[: limits.MAX_BATCH], name, check))
