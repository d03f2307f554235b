"""The Lua scripts of the cache: `redis_link.scripts` says how one is made.

`load` and `put` are what `RedisLoad` and `RedisPut` ask for; `scripts/lib/record.lua` has the data
model.

Why no time limit on a command: a home whose time is over is told from one that serves by the epoch
that reading a key leaves in Redis (the floor), in the same step in which it would write. That holds
however late a command comes and whatever any clock shows: where nothing is left of a key, nothing
is written either.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from distsync_node.redis_link.scripts import Script, SourceReader, assemble_all, reader_of

SCRIPT_NAMES: Final = ("load", "put")
GRACE_MS: Final = 3_600_000
"""How long Redis remembers deletions, and keys that were only read."""

read_source: Final = reader_of("distsync_node.cache")


def redis_key(cluster_id: str, key: str) -> str:
    """Return the Redis key of a key of the cache of a cluster.

    Epochs begin anew with each cluster, so what another one left in the same Redis, floors above
    all, must not be in its way.
    """
    return f"dsc:{quote(cluster_id, safe='')}:{{{quote(key, safe='')}}}"


def load_scripts(read: SourceReader = read_source) -> Mapping[str, Script]:
    """Return all scripts by name."""
    return assemble_all(SCRIPT_NAMES, read)
