"""Whether a Redis server may hold what must not be lost: asked on every connection that is made."""

from __future__ import annotations

from typing import Any, Final

import hiredis

from distsync_node.redis_link.link import Credentials, Endpoint, Link, pack_command

OLDEST_VERSION: Final = (6, 2)


class Unfit(Exception):
    """The server must not be used as it is; one line says why and what to do."""


async def check_server(link: Link, endpoint: Endpoint) -> None:
    """Ask the server what it is.

    Raises:
        Unfit: it evicts, is a replica, or is too old.
        LinkLost: it went away.
    """
    reply = await link.call(pack_command("INFO"))
    if isinstance(reply, hiredis.ReplyError):
        raise Unfit(
            f"redis at {endpoint}: INFO is refused ({reply}); queues need to see what it is"
        )
    info = parse_info(reply)
    version = info.get("redis_version", "0")
    if _version(version) < OLDEST_VERSION:
        raise Unfit(f"redis at {endpoint} is version {version}; 6.2 or newer is needed")
    if info.get("role") == "slave":
        raise Unfit(f"redis at {endpoint} is a read-only replica; give the URL of the primary")
    policy = info.get("maxmemory_policy", "")
    if policy and policy != "noeviction":
        raise Unfit(
            f"redis at {endpoint} evicts keys (maxmemory-policy {policy}); messages would be lost:"
            " set it to noeviction"
        )


def parse_info(reply: Any) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    lines = bytes(reply).decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def refusal(
    error: hiredis.ReplyError, endpoint: Endpoint, credentials: Credentials
) -> Unfit | None:
    """Return what a refused greeting means, if it will not mend by itself."""
    text = str(error)
    user = f" for user {credentials.username}" if credentials.username else ""
    if "NOAUTH" in text or "HELLO must be called" in text:
        return Unfit(f"redis at {endpoint} wants a password; give it in the URL")
    if any(mark in text for mark in ("WRONGPASS", "invalid password", "invalid username")):
        return Unfit(f"redis at {endpoint}: wrong password{user}")
    if "AUTH" in text:
        return Unfit(f"redis at {endpoint}: the password{user} is not taken ({text})")
    if "DB index" in text or "SELECT is not allowed" in text:
        return Unfit(f"redis at {endpoint} has no database {credentials.database}")
    if "NOPERM" in text:
        return Unfit(f"redis at {endpoint}: the user has not the rights it needs ({text})")
    return None


def _version(text: str) -> tuple[int, int]:
    numbers = [int(part) for part in text.split(".")[:2] if part.isdigit()]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)
