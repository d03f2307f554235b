"""Paths of the API that contain a name."""

from __future__ import annotations

from urllib.parse import quote

__all__ = ["lock_path"]


def lock_path(name: str) -> str:
    """Return the path of a lock: its name is one segment, whatever it contains."""
    segment = quote(name, safe="")
    if segment in (".", ".."):  # a path would swallow these
        segment = segment.replace(".", "%2E")
    return f"/lock/{segment}"
