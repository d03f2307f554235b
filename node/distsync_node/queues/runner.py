"""Runs the scripts of queues on Redis, and keeps the register of names.

The register is a sorted set outside all queues, so no script can write to it together with a queue
of a Redis Cluster. A name is registered before the first push that this node sees for it, and again
when a push finds that it made the queue: a queue that has messages is listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from distsync_node.errors import RequestIdReused
from distsync_node.queues import model
from distsync_node.queues.commands import ScriptCalls, decode
from distsync_node.queues.scripts import load_scripts, read_source
from distsync_node.redis_link.calls import DEADLINE_S, PATIENCE_S, Abandoned
from distsync_node.redis_link.link import pack_command
from distsync_node.redis_link.scripted import ScriptedRedis
from distsync_node.redis_link.scripts import SourceReader
from distsync_node.redis_link.topology import Timing

MAX_REGISTERED_KEPT: Final = 100_000
READING: Final = frozenset(
    {"get", "peek", "list", "stats", "schedules"}
)  # scripts that change nothing


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
        scripts = load_scripts(read_script)
        self._commands = ScriptCalls(scripts)
        self._redis = ScriptedRedis(
            url, (*scripts.values(),), timing=timing, patience_s=patience_s, deadline_s=deadline_s
        )
        self._registered: set[str] = set()

    async def start(self) -> None:
        """Connect. A Redis that cannot be reached yet is no error.

        Raises:
            StartupError: the server must not be used as it is, in one line.
        """
        await self._redis.start("every call about queues")

    async def close(self) -> None:
        """End all connections. Calls in flight fail."""
        await self._redis.close()

    async def run(
        self,
        name: str,
        queue: str,
        request: Sequence[Any],
        bodies: Sequence[bytes] = (),
        *,
        abandoned: Abandoned | None = None,
    ) -> list[Any]:
        """Run script `name` on a queue and return its answer, the first part of it decoded.

        Raises:
            RequestIdReused, and those of `Calls.run`.
        """
        command = self._commands.command(name, queue, request, bodies)
        reply: list[Any] = await self._redis.run(
            model.key(queue, "meta"),
            command,
            script=self._commands.script(name),
            writes=name not in READING,
            abandoned=abandoned,
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
        await self._redis.run(model.REGISTRY_KEY, command, writes=True)
        self._registered.add(queue)

    async def names(self, prefix: bytes, after: bytes, limit: int) -> tuple[str, ...]:
        """Return registered names that begin with `prefix`, in order, behind `after`."""
        first = b"(" + after if after and after >= prefix else b"[" + prefix
        last = b"(" + prefix + b"\xff"
        command = pack_command("ZRANGEBYLEX", model.REGISTRY_KEY, first, last, "LIMIT", 0, limit)
        names: list[bytes] = await self._redis.run(model.REGISTRY_KEY, command)
        return tuple(name.decode() for name in names)

    async def look_at(self, queue: str, at_ms: int, *, no_later: bool = False) -> None:
        """Have a queue's schedules looked at then; with `no_later`, unless that is earlier yet."""
        options = ("LT",) if no_later else ()
        command = pack_command("ZADD", model.SCHEDULED_KEY, *options, at_ms, queue)
        await self._redis.run(model.SCHEDULED_KEY, command, writes=True)

    async def look_no_more(self, queue: str) -> None:
        """The queue has no schedules any more."""
        command = pack_command("ZREM", model.SCHEDULED_KEY, queue)
        await self._redis.run(model.SCHEDULED_KEY, command, writes=True)

    async def to_look_at(
        self, now_ms: int, *, after: int, limit: int
    ) -> tuple[tuple[str, int], ...]:
        """Return queues whose schedules are to be looked at by now, and the times of that.

        The earliest first, up to `limit` behind the first `after`.
        """
        paging = ("WITHSCORES", "LIMIT", after, limit)
        command = pack_command("ZRANGEBYSCORE", model.SCHEDULED_KEY, "-inf", now_ms, *paging)
        found: list[bytes] = await self._redis.run(model.SCHEDULED_KEY, command)
        pairs = zip(found[::2], found[1::2], strict=True)
        return tuple((name.decode(), int(float(at_ms))) for name, at_ms in pairs)

    async def time_ms(self) -> int:
        """Return the time of Redis, in milliseconds since 1970."""
        seconds, micros = await self._redis.run(model.SCHEDULED_KEY, pack_command("TIME"))
        return int(seconds) * 1_000 + int(micros) // 1_000

    async def ping(self) -> None:
        """Ask Redis whether it is there."""
        await self._redis.run(model.REGISTRY_KEY, pack_command("PING"))
