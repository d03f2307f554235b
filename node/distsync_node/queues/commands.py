"""Script calls as Redis reads them, and their answers.

A call is EVALSHA with the keys of the script's header, one msgpack array of what it asks, and
bodies. Most bytes of it depend on the queue only; they are kept for the queues in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from distsync_node.queues import model
from distsync_node.redis_link.scripts import Script

MAX_QUEUES_KEPT: Final = 4096

encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder().decode


class ScriptCalls:
    """Makes the commands that run scripts on queues."""

    def __init__(self, scripts: Mapping[str, Script]) -> None:
        self._scripts = scripts
        self._heads: dict[tuple[str, str], tuple[int, bytes]] = {}

    def command(
        self, name: str, queue: str, request: Sequence[Any], bodies: Sequence[bytes] = ()
    ) -> bytes:
        """Return the command that runs script `name` on a queue, by its SHA-1."""
        head = self._heads.get((name, queue))
        if head is None:
            if len(self._heads) >= MAX_QUEUES_KEPT:
                self._heads.clear()
            head = self._heads[name, queue] = self._head(name, queue)
        count, middle = head
        packed = encode(request)
        parts = [
            b"*%d\r\n" % (count + len(bodies)),
            middle,
            b"$%d\r\n%b\r\n" % (len(packed), packed),
        ]
        parts += [b"$%d\r\n%b\r\n" % (len(body), body) for body in bodies]
        return b"".join(parts)

    def script(self, name: str) -> Script:
        """Return the script of that name."""
        return self._scripts[name]

    def _head(self, name: str, queue: str) -> tuple[int, bytes]:
        script = self._scripts[name]
        keys = model.keys(queue, script)
        arguments = [b"EVALSHA", script.sha.encode(), str(len(keys)).encode(), *keys]
        middle = b"".join(b"$%d\r\n%b\r\n" % (len(one), one) for one in arguments)
        return len(arguments) + 1, middle
