"""What a call may not ask. Each refusal names the field, and nothing was done."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from distsync_node.errors import BadRequest, PayloadTooLarge
from distsync_node.queues import limits
from distsync_node.queues.types import Fence, NewMessage, QueueConfigChange

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]")
_RECEIPT: Final = re.compile(r"([0-9a-z-]{1,64})\.([0-9a-z]{1,64})\.([0-9a-f]{8})")
_TOKEN: Final = re.compile(r"[0-9a-z]{1,64}")

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


def check_messages(messages: Sequence[NewMessage]) -> None:
    """Refuse a push one of whose messages cannot be; the field names which."""
    if not 1 <= len(messages) <= limits.MAX_BATCH:
        raise BadRequest(f"messages: must be 1 to {limits.MAX_BATCH}", field="messages")
    total_bytes = 0
    for i, message in enumerate(messages):
        size = len(message.body)
        total_bytes += size
        if size > limits.MAX_BODY_BYTES:
            raise PayloadTooLarge(
                f"messages[{i}].body: is longer than {limits.MAX_BODY_BYTES} bytes",
                field=f"messages[{i}].body",
            )
        if not 0 <= message.delay_ms <= limits.MAX_DELAY_MS:
            check_range(message.delay_ms, f"messages[{i}].delay_ms", 0, limits.MAX_DELAY_MS)
        if not 0 <= message.priority <= limits.MAX_PRIORITY:
            check_range(message.priority, f"messages[{i}].priority", 0, limits.MAX_PRIORITY)
        if not 0 <= message.ttl_ms <= limits.MAX_TTL_MS:
            check_range(message.ttl_ms, f"messages[{i}].ttl_ms", 0, limits.MAX_TTL_MS)
        if message.dedupe_id:
            field = f"messages[{i}].dedupe_id"
            check_text(message.dedupe_id, field, limits.MAX_DEDUPE_ID_BYTES)
        if message.group:
            check_text(message.group, f"messages[{i}].group", limits.MAX_GROUP_BYTES)
    if total_bytes > limits.MAX_BATCH_BYTES:
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


def split_receipts(receipts: Sequence[str], mark: str) -> tuple[list[str], list[str]]:
    """Return ids and tokens of receipts, all of which must be of the queue of that mark."""
    if not 1 <= len(receipts) <= limits.MAX_BATCH:
        raise BadRequest(f"receipts: must be 1 to {limits.MAX_BATCH}", field="receipts")
    ids, tokens = [], []
    for i, receipt in enumerate(receipts):
        parts = _RECEIPT.fullmatch(receipt)
        if parts is None:
            raise BadRequest(f"receipts[{i}]: is not a receipt", field=f"receipts[{i}]")
        if parts[3] != mark:
            raise BadRequest(f"receipts[{i}]: is of another queue", field=f"receipts[{i}]")
        ids.append(parts[1])
        tokens.append(parts[2])
    return ids, tokens
