"""Paths of the API that contain a name."""

from __future__ import annotations

from urllib.parse import quote

__all__ = [
    "cache_path",
    "lock_path",
    "member_path",
    "message_path",
    "queue_path",
    "schedule_path",
]


def lock_path(name: str) -> str:
    """Return the path of a lock: its name is one segment, whatever it contains."""
    return f"/lock/{_segment(name)}"


def queue_path(name: str) -> str:
    """Return the path of a queue; as `lock_path`."""
    return f"/queue/{_segment(name)}"


def cache_path(key: str) -> str:
    """Return the path of a cached value; as `lock_path`."""
    return f"/cache/{_segment(key)}"


def message_path(queue: str, message_id: str) -> str:
    """Return the path of a message; as `lock_path`."""
    return f"{queue_path(queue)}/messages/{_segment(message_id)}"


def schedule_path(queue: str, schedule_id: str) -> str:
    """Return the path of a schedule; as `lock_path`."""
    return f"{queue_path(queue)}/schedules/{_segment(schedule_id)}"


def member_path(member_id: str) -> str:
    """Return the path of a member, for administrators; as `lock_path`."""
    return f"/cluster/members/{_segment(member_id)}"


def _segment(name: str) -> str:
    segment = quote(name, safe="")
    if segment in (".", ".."):  # a path would swallow these
        segment = segment.replace(".", "%2E")
    return segment
