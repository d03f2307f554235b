"""Limits and deadlines of the endpoints."""

from __future__ import annotations

from dataclasses import dataclass

from distsync_node.api.schemas import MAX_BODY_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiOptions:
    """Durations are milliseconds. The defaults suit production; tests shrink them."""

    max_body_bytes: int = MAX_BODY_BYTES
    max_path_bytes: int = 32 << 10  # path and query; two names, percent-encoded, take up to 12 KiB
    max_header_bytes: int = 32 << 10
    max_headers: int = 100
    max_concurrent_requests: int = 20_000
    max_watchers: int = 1_000
    body_timeout_ms: int = 10_000
    command_timeout_ms: int = 5_000
    disconnect_check_ms: int = 20
    watch_keep_alive_ms: int = 15_000
    send_timeout_ms: int = 30_000
    max_problem_logs_per_s: int = 100
    access_log: bool = False
