"""A call to Redis that survives lost connections, restarts, failovers and forgotten scripts.

Every call may be sent again: it either changes nothing twice by nature or carries a request id that
its script remembers. So a call whose answer was lost is sent again until its deadline, and then
said to be unknown if Redis may have executed it, unavailable if it certainly has not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import hiredis

from distsync_node.errors import (
    DistSyncError,
    LimitReached,
    OutcomeUnknown,
    RedisFull,
    RedisUnavailable,
    doubtful,
)
from distsync_node.redis_link.link import LinkBusy, LinkLost, TooFewReplicas, pack_command
from distsync_node.redis_link.topology import Topology

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 1.0  # for a connection
DEADLINE_S: Final = 5.0  # for an answer, over all attempts
RETRY_S: Final = 0.05
_ASKING: Final = pack_command("ASKING")

# Refused before anything was executed; mends by itself.
_TRANSIENT: Final = ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "BUSY ", "NOREPLICAS")
# Refused before anything was executed; someone has to look.
_REFUSED: Final = ("MISCONF", "NOPERM", "NOAUTH", "ERR max number of clients")


Abandoned = Callable[[asyncio.Future[Any] | None], None]
"""Told of the call that nobody waits for any more; None if that was lost already."""


class Calls:
    """Calls over a topology."""

    def __init__(
        self, topology: Topology, *, patience_s: float = PATIENCE_S, deadline_s: float = DEADLINE_S
    ) -> None:
        self._topology = topology
        self._patience_s = patience_s
        self._deadline_s = deadline_s

    async def run(
        self,
        key: bytes,
        command: bytes,
        *,
        source: Callable[[], bytes] | None = None,
        writes: bool = False,
        abandoned: Abandoned | None = None,
    ) -> Any:
        """Send a packed command to the server of `key` and return its reply.

        `source` gives the same command with the text of its script, for a server that has forgotten
        it. `writes`: the reply counts only when replicas have the write, if the URL asks for that;
        and when it is lost, the write may have been done. `abandoned` is called if the caller is
        cancelled when Redis may have the command.

        Raises:
            RedisUnavailable: nothing was done.
            OutcomeUnknown: it may have been done; retry with the same request id.
            RedisFull: Redis is out of memory; nothing was done.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        patience, deadline = started + self._patience_s, started + self._deadline_s
        maybe_done = False
        asking = ""
        future: asyncio.Future[Any] | None = None
        while True:
            try:
                if asking:
                    link = await self._topology.asked(asking, patience)
                    asking = ""
                    _, reply = await link.call_all([_ASKING, command])
                else:
                    link = await self._topology.link(key, patience, waits=writes)
                    future = link.call(command)
                    reply = await (future if abandoned is None else asyncio.shield(future))
            except asyncio.CancelledError:
                if abandoned is not None and (future is not None or maybe_done):
                    abandoned(future)
                raise
            except LinkBusy:
                busy = LimitReached("too many calls to redis are in flight", limit="redis")
                raise doubtful(busy) if maybe_done else busy from None
            except RedisUnavailable as error:
                raise doubtful(error) if maybe_done else error from None
            except LinkLost as error:
                maybe_done = maybe_done or (writes and error.was_sent)
                failure = str(error)
            except TooFewReplicas as error:
                maybe_done = True
                failure = f"only {error} replicas have it"
            else:
                if not isinstance(reply, hiredis.ReplyError):
                    return reply
                failure = str(reply)
                if "NOSCRIPT" in failure and source is not None:
                    command, source = source(), None
                    continue
                if failure.startswith("ASK "):
                    asking = failure
                    continue
                try:
                    await self._mend(failure)
                except DistSyncError as error:
                    raise doubtful(error) if maybe_done else error from None
            if loop.time() >= deadline:
                if maybe_done:
                    raise OutcomeUnknown(f"redis did not answer in time: {failure}")
                raise RedisUnavailable(f"redis does not serve: {failure}")
            patience = min(deadline, loop.time() + self._patience_s)

    async def _mend(self, failure: str) -> None:
        """Do what an error reply asks for, or raise what it means."""
        if "OOM " in failure:
            raise RedisFull("redis has no memory left (maxmemory); nothing was done")
        if failure.startswith("MOVED ") or "READONLY" in failure:
            self._topology.moved(failure)
            await asyncio.sleep(RETRY_S if "READONLY" in failure else 0)
        elif failure.startswith(_TRANSIENT) or any(f"-{mark}" in failure for mark in _TRANSIENT):
            await asyncio.sleep(RETRY_S)
        elif any(mark in failure for mark in _REFUSED):
            raise RedisUnavailable(f"redis refuses: {failure}")
        else:
            logger.error("redis refuses a call: %s", failure)
            raise DistSyncError(f"redis refuses the call: {failure}")
