"""A Redis whose every connection knows a set of scripts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from distsync_node.errors import RedisUnavailable, StartupError
from distsync_node.redis_link.address import parse_redis_url
from distsync_node.redis_link.calls import DEADLINE_S, PATIENCE_S, Abandoned, Calls
from distsync_node.redis_link.fitness import Unfit
from distsync_node.redis_link.link import Link, pack_command
from distsync_node.redis_link.scripts import Script
from distsync_node.redis_link.topology import Timing, find_topology

logger = logging.getLogger(__name__)


class ScriptedRedis:
    """The Redis of `url`. `start` it before use.

    Raises:
        StartupError: the URL is none.
    """

    def __init__(
        self,
        url: str,
        scripts: Sequence[Script],
        *,
        timing: Timing | None = None,
        patience_s: float = PATIENCE_S,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._scripts = scripts
        self._topology = find_topology(parse_redis_url(url), timing or Timing(), self._load)
        self._calls = Calls(self._topology, patience_s=patience_s, deadline_s=deadline_s)

    async def start(self, user: str) -> None:
        """Connect. A Redis that cannot be reached yet is no error: the log says what `user` does.

        Raises:
            StartupError: the server must not be used as it is, in one line.
        """
        try:
            await self._topology.check()
        except Unfit as error:
            await self.close()
            raise StartupError(str(error)) from None
        except RedisUnavailable as error:
            logger.warning("%s; %s answers 503 until it can", error.detail, user)

    async def close(self) -> None:
        """End all connections. Calls in flight fail."""
        await self._topology.close()

    async def run(
        self,
        key: bytes,
        command: bytes,
        *,
        script: Script | None = None,
        writes: bool = False,
        abandoned: Abandoned | None = None,
    ) -> Any:
        """Send a packed command, of `script` if it runs one; see `Calls.run` for the rest."""
        source = None if script is None else _with_text(script, command)
        return await self._calls.run(
            key, command, source=source, writes=writes, abandoned=abandoned
        )

    async def _load(self, link: Link) -> None:
        commands = [pack_command("SCRIPT", "LOAD", script.source) for script in self._scripts]
        for reply, script in zip(await link.call_all(commands), self._scripts, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                raise Unfit(f"redis does not take the script {script.name}: {reply}")


def _with_text(script: Script, command: bytes) -> Callable[[], bytes]:
    """Return what gives the same command with the script's text in place of its SHA-1."""

    def make() -> bytes:
        by_sha = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n" % script.sha.encode()
        by_text = b"$4\r\nEVAL\r\n$%d\r\n%b\r\n" % (len(script.source), script.source)
        return command.replace(by_sha, by_text, 1)

    return make
