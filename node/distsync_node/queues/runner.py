"""Runs the scripts of queues on Redis, and keeps the register of names.

The register is a sorted set outside all queues, so no script can write to it together with a queue
of a Redis Cluster. A name is registered before the first push that this node sees for it, and again
when a push finds that it made the queue: a queue that has messages is listed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

import hiredis

from distsync_node.errors import RedisUnavailable, RequestIdReused, StartupError
from distsync_node.queues import model
from distsync_node.queues.commands import ScriptCalls, decode
from distsync_node.queues.scripts import SourceReader, load_scripts, read_source
from distsync_node.redis_link.address import parse_redis_url
from distsync_node.redis_link.calls import DEADLINE_S, PATIENCE_S, Calls
from distsync_node.redis_link.fitness import Unfit
from distsync_node.redis_link.link import Link, pack_command
from distsync_node.redis_link.topology import Timing, find_topology

logger = logging.getLogger(__name__)

MAX_REGISTERED_KEPT: Final = 100_000
READING: Final = frozenset({"get", "peek", "list", "stats"})  # scripts that change nothing


class Runner:
    """Scripts over the connections to one Redis. `start` it before use."""

    def __init__(
        self,
        url: str,
        *,
        timing: Timing | None = None,
        patience_s: float = PATIENCE_S,
        deadline_s: float = DEADLINE_S,
        read_script: SourceReader = read_source,
    ) -> None:
        self._scripts = load_scripts(read_script)
        self._commands = ScriptCalls(self._scripts)
        address = parse_redis_url(url)
        self._topology = find_topology(address, timing or Timing(), self._load_scripts)
        self._calls = Calls(self._topology, patience_s=patience_s, deadline_s=deadline_s)
        self._registered: set[str] = set()

    async def start(self) -> None:
        """Connect. A Redis that cannot be reached yet is no error.

        Raises:
            StartupError: the server must not be used as it is, in one line.
        """
        try:
            await self._topology.check()
        except Unfit as error:
            await self.close()
            raise StartupError(str(error)) from None
        except RedisUnavailable as error:
            logger.warning("%s; queues answer 503 until it can", error.detail)

    async def close(self) -> None:
        """End all connections. Calls in flight fail."""
        await self._topology.close()

    async def run(
        self, name: str, queue: str, request: Sequence[Any], bodies: Sequence[bytes] = ()
    ) -> list[Any]:
        """Run script `name` on a queue and return its answer, the first part of it decoded.

        Raises:
            RequestIdReused, and those of `Calls.run`.
        """
        command = self._commands.command(name, queue, request, bodies)
        source = self._commands.with_source(name, command)
        key = model.key(queue, "meta")
        reply: list[Any] = await self._calls.run(
            key, command, source=source, writes=name not in READING
        )
        reply[0] = decode(reply[0])
        if reply[0][0] == "reused":
            raise RequestIdReused(
                "request_id: came before with another body; each request needs its own",
                field="request_id",
            )
        return reply

    async def register(self, queue: str, *, again: bool = False) -> None:
        """Enter a name into the register, if this node has not done so before."""
        if queue in self._registered and not again:
            return
        if len(self._registered) >= MAX_REGISTERED_KEPT:
            self._registered.clear()
        command = pack_command("ZADD", model.REGISTRY_KEY, 0, queue)
        await self._calls.run(model.REGISTRY_KEY, command, writes=True)
        self._registered.add(queue)

    async def names(self, prefix: bytes, after: bytes, limit: int) -> tuple[str, ...]:
        """Return registered names that begin with `prefix`, in order, behind `after`."""
        first = b"(" + after if after and after >= prefix else b"[" + prefix
        last = b"(" + prefix + b"\xff"
        command = pack_command("ZRANGEBYLEX", model.REGISTRY_KEY, first, last, "LIMIT", 0, limit)
        names: list[bytes] = await self._calls.run(model.REGISTRY_KEY, command)
        return tuple(name.decode() for name in names)

    async def ping(self) -> None:
        """Ask Redis whether it is there."""
        await self._calls.run(model.REGISTRY_KEY, pack_command("PING"))

    async def _load_scripts(self, link: Link) -> None:
        scripts = self._scripts.values()
        commands = [pack_command("SCRIPT", "LOAD", script.source) for script in scripts]
        for reply, script in zip(await link.call_all(commands), scripts, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                raise Unfit(f"redis does not take the script {script.name}: {reply}")
