"""What a call may not ask. Each refusal names the field, and nothing was done."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

from distsync_node.errors import BadRequest, PayloadTooLarge
from distsync_node.queues import limits
from distsync_node.queues.types import Fence, NewMessage, QueueConfigChange

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_RECEIPT: Final = re.compile(r"([0-9a-z-]{1,64})\.([0-9a-z]{1,64})\.([0-9a-f]{8})")
_TOKEN: Final = re.compile(r"[0-9a-z]{1,64}")
_MAX_TOLD: Final = 256  # characters of a field or a sentence, which may quote what came

T = TypeVar("T")

_CONFIG_LIMITS: Final = {
    "max_length": (0, limits.MAX_LENGTH),
    "max_deliveries": (0, limits.MAX_DELIVERIES),
    "dedupe_window_ms": (0, limits.MAX_DEDUPE_WINDOW_MS),
    "ttl_ms": (0, limits.MAX_TTL_MS),
    "rate_count": (0, limits.MAX_RATE_COUNT),
    "rate_per_ms": (1, limits.MAX_RATE_PER_MS),
}


def check_text(value: str, field: str, max_bytes: int, *, empty: bool = False) -> None:
    """Refuse text that is too long in UTF-8, is none, or has control characters."""
    if not value and not empty:
        raise BadRequest(f"{field}: is empty", field=field)
    if len(value) * 4 > max_bytes or not value.isascii():
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise BadRequest(f"{field}: is not text", field=field) from None
        if size > max_bytes:
            raise BadRequest(f"{field}: is longer than {max_bytes} bytes", field=field)
    if value and not value.isprintable() and _CONTROL.search(value):
        raise BadRequest(f"{field}: has control characters", field=field)


def check_range(value: int, field: str, lowest: int, highest: int) -> None:
    """Refuse a number out of range."""
    if not lowest <= value <= highest:
        raise BadRequest(f"{field}: must be {lowest} to {highest}", field=field)


def check_queue(queue: str) -> None:
    """Refuse a name no queue can have."""
    check_text(queue, "queue", limits.MAX_NAME_BYTES)


def check_request_id(request_id: str) -> None:
    """Refuse a request id that cannot be remembered."""
    check_text(request_id, "request_id", limits.MAX_REQUEST_ID_BYTES)


def check_token(token: str, field: str) -> None:
    """Refuse what cannot be the id of a push or the token of a claim."""
    if not _TOKEN.fullmatch(token):
        raise BadRequest(f"{field}: must be up to 64 of a to z and 0 to 9", field=field)


def refused_items(
    items: Iterable[T], field: str, check: Callable[[T, str], None]
) -> list[tuple[int, BadRequest]]:
    """Return which items of a batch `check` refuses, given each with the name of its place."""
    refused = []
    for index, item in enumerate(items):
        try:
            check(item, f"{field}[{index}]")
        except BadRequest as error:
            refused.append((index, error))
    return refused


def tell_items(refused: Iterable[tuple[int, BadRequest]]) -> list[dict[str, Any]]:
    """Return what the `errors` of a refused batch says: an entry for each item that cannot be."""
    return [
        {
            "index": index,
            "field": str(error.fields["field"])[:_MAX_TOLD],
            "code": error.code,
            "detail": error.detail[:_MAX_TOLD],
        }
        for index, error in refused
    ]


def _check_items(items: Sequence[T], field: str, check: Callable[[T, str], None]) -> None:
    """Refuse a batch for its first item that cannot be; `errors` tells of the others too."""
    if not 1 <= len(items) <= limits.MAX_BATCH:
        raise BadRequest(f"{field}: must be 1 to {limits.MAX_BATCH}", field=field)
    if refused := refused_items(items, field, check):
        _, error = refused[0]
        error.fields["errors"] = tell_items(refused)
        raise error


def check_body(body: bytes, field: str) -> None:
    """Refuse a body that is too long."""
    if len(body) > limits.MAX_BODY_BYTES:
        raise PayloadTooLarge(f"{field}: is longer than {limits.MAX_BODY_BYTES} bytes", field=field)


def check_message(message: NewMessage, where: str) -> None:
    """Refuse a message that cannot be; `where` names its place."""
    if len(message.body) > limits.MAX_BODY_BYTES:
        check_body(message.body, f"{where}.body")
    if not 0 <= message.delay_ms <= limits.MAX_DELAY_MS:
        check_range(message.delay_ms, f"{where}.delay_ms", 0, limits.MAX_DELAY_MS)
    if not 0 <= message.priority <= limits.MAX_PRIORITY:
        check_range(message.priority, f"{where}.priority", 0, limits.MAX_PRIORITY)
    if not 0 <= message.ttl_ms <= limits.MAX_TTL_MS:
        check_range(message.ttl_ms, f"{where}.ttl_ms", 0, limits.MAX_TTL_MS)
    if message.dedupe_id:
        check_text(message.dedupe_id, f"{where}.dedupe_id", limits.MAX_DEDUPE_ID_BYTES)
    if message.group:
        check_text(message.group, f"{where}.group", limits.MAX_GROUP_BYTES)


def check_messages(messages: Sequence[NewMessage]) -> None:
    """Refuse a push some of whose messages cannot be; `errors` tells which, and why."""
    _check_items(messages, "messages", check_message)
    if sum(len(message.body) for message in messages) > limits.MAX_BATCH_BYTES:
        raise PayloadTooLarge(
            f"messages: the bodies are longer than {limits.MAX_BATCH_BYTES} bytes together",
            field="messages",
        )


def check_fence(fence: Fence) -> None:
    """Refuse a fence no lock can have granted."""
    check_text(fence.lock, "fence.lock", limits.MAX_NAME_BYTES)
    check_range(fence.token, "fence.token", 1, 2**53 - 1)


def check_config(change: QueueConfigChange) -> None:
    """Refuse a configuration that is out of range."""
    for field, (lowest, highest) in _CONFIG_LIMITS.items():
        value = getattr(change, field)
        if value is not None:
            check_range(value, field, lowest, highest)


def queue_mark(queue: str) -> str:
    """Return what the receipts of a queue end with."""
    return hashlib.blake2b(queue.encode(), digest_size=4).hexdigest()


def make_receipt(message_id: str, token: str, mark: str) -> str:
    """Return the receipt of a claim."""
    return f"{message_id}.{token}.{mark}"


def split_receipt(receipt: str, mark: str, where: str) -> tuple[str, str]:
    """Return id and token of a receipt, which must be of the queue of that mark."""
    parts = _RECEIPT.fullmatch(receipt)
    if parts is None:
        raise BadRequest(f"{where}: is not a receipt", field=where)
    if parts[3] != mark:
        raise BadRequest(f"{where}: is of another queue", field=where)
    return parts[1], parts[2]


def split_receipts(receipts: Sequence[str], mark: str, field: str) -> tuple[list[str], list[str]]:
    """Return ids and tokens of receipts; `errors` of a refusal tells which cannot be, and why."""
    split: list[tuple[str, str]] = []
    _check_items(
        receipts, field, lambda receipt, where: split.append(split_receipt(receipt, mark, where))
    )
    return [message_id for message_id, _ in split], [token for _, token in split]
