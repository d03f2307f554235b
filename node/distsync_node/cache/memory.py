"""Redis as the main memory of the cache: carries out `RedisLoad` and `RedisPut`."""

from __future__ import annotations

import logging
from typing import Final

from distsync_node.cache.effects import RedisLoad, RedisPut
from distsync_node.cache.events import RedisAnswer, RedisFailed
from distsync_node.cache.redis_calls import answer, arguments
from distsync_node.cache.scripts import load_scripts, redis_key
from distsync_node.errors import DistSyncError, LimitReached, RedisFull, RedisUnavailable
from distsync_node.redis_link.link import pack_command
from distsync_node.redis_link.scripted import ScriptedRedis

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 0.5  # for a connection
DEADLINE_S: Final = 2.0  # for an answer, over all attempts; the core asks again by itself

_NOTHING_DONE: Final = (RedisUnavailable, RedisFull, LimitReached)


class MainMemory:
    """The Redis of `url`. `start` it before use. Raises StartupError: the URL is none."""

    def __init__(self, url: str) -> None:
        self._scripts = load_scripts()
        self._redis = ScriptedRedis(
            url, (*self._scripts.values(),), patience_s=PATIENCE_S, deadline_s=DEADLINE_S
        )
        self.trouble: DistSyncError | None = None  # of the last call, if that failed
        self.stored = 0  # values that Redis took

    async def start(self) -> None:
        """Connect, as `ScriptedRedis.start` does."""
        await self._redis.start("what the cache does not hold")

    async def close(self) -> None:
        """End all connections."""
        await self._redis.close()

    async def request(self, cluster_id: str, effect: RedisLoad | RedisPut) -> RedisAnswer:
        """Carry out an effect for a cluster.

        A lost answer is asked for again; all of this may come twice.
        """
        name, values = arguments(effect)
        script = self._scripts[name]
        key = redis_key(cluster_id, effect.key).encode()
        command = pack_command("EVALSHA", script.sha, 1, key, *values)
        try:
            # Reading leaves the floor in Redis, so both count as writes.
            reply = await self._redis.run(key, command, script=script, writes=True)
        except DistSyncError as error:
            self._note(error)
            return RedisFailed(
                effect.request,
                undone=isinstance(error, _NOTHING_DONE),
                full=isinstance(error, RedisFull),
            )
        if self.trouble is not None:
            self.trouble = None
            logger.info("redis serves the cache again")
        if isinstance(effect, RedisPut) and effect.copy is not None:
            self.stored += 1
        return answer(effect, reply)

    def _note(self, error: DistSyncError) -> None:
        if self.trouble is None or self.trouble.code != error.code:
            logger.warning("redis does not serve the cache: %s", error.detail)
        self.trouble = error
