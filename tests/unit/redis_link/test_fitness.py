"""A server that must not be used is named in one line, at the start and while running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distsync_node.errors import RedisUnavailable, StartupError
from distsync_node.queues.store import QueueStore
from distsync_node.queues.types import NewMessage
from distsync_node.redis_link.topology import Timing
from process.running import reserved_port
from redis_server import RedisServer

QUICK = {"patience_s": 2.0, "timing": Timing(connect_s=1.0, stall_s=1.0)}


async def refusal(url: str) -> str:
    with pytest.raises(StartupError) as refused:
        await QueueStore.open(url)
    text = str(refused.value)
    assert "\n" not in text
    return text


@contextmanager
def replica_of(primary: RedisServer, directory: Path) -> Iterator[RedisServer]:
    options = {"replicaof": f"127.0.0.1 {primary.port}"}
    with RedisServer(directory, options=options) as replica:
        yield replica


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts(tmp_path: Path, policy: str) -> None:
    with RedisServer(tmp_path, options={"maxmemory-policy": policy}) as server:
        text = await refusal(server.url)
    assert policy in text
    assert "noeviction" in text


async def test_a_read_only_replica(tmp_path: Path) -> None:
    with (
        RedisServer(tmp_path / "a", port=reserved_port()) as primary,
        replica_of(primary, tmp_path / "b") as replica,
    ):
        assert "read-only replica" in await refusal(replica.url)


async def test_no_password_and_a_wrong_one(tmp_path: Path) -> None:
    with RedisServer(tmp_path, options={"requirepass": "s3cret"}) as server:
        assert "wants a password" in await refusal(f"unix://{server.socket}")
        wrong = await refusal(f"unix://:wr0ng@{server.socket}")
        assert "wrong password" in wrong
        assert "wr0ng" not in wrong
        assert "wrong password for user ann" in await refusal(f"unix://ann:wr0ng@{server.socket}")
        store = await QueueStore.open(server.url)
        await store.ping()
        await store.close()


async def test_a_password_where_none_is_wanted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert "password" in await refusal(f"unix://:useless@{server.socket}")


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        assert "no database 99" in await refusal(f"unix://{server.socket}?db=99")
        store = await QueueStore.open(f"unix://{server.socket}?db=3")
        await store.push("orders", [NewMessage(body=b"x")])
        assert server.client().info("keyspace").keys() == {"db3"}
        await store.close()


async def test_a_user_without_the_rights(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.client().execute_command("ACL", "SETUSER", "ann", "on", ">pw", "+ping", "~*")
        assert "INFO is refused" in await refusal(f"unix://ann:pw@{server.socket}")


async def test_a_user_who_may_not_load_scripts(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        rights = ("on", ">pw", "+@all", "-script", "~*")
        server.client().execute_command("ACL", "SETUSER", "ann", *rights)
        assert "does not take the script" in await refusal(f"unix://ann:pw@{server.socket}")


async def test_cluster_of_a_server_that_is_none(tmp_path: Path) -> None:
    with RedisServer(tmp_path, port=reserved_port()) as server:
        text = await refusal(f"redis+cluster://127.0.0.1:{server.port}")
    assert "not part of a cluster" in text


async def test_a_server_that_is_not_there_yet_is_no_error(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    store = await QueueStore.open(server.url, **QUICK)
    with pytest.raises(RedisUnavailable) as refused:
        await store.push("orders", [NewMessage(body=b"x")])
    assert (refused.value.status, refused.value.retriable) == (503, True)
    with server:
        await store.push("orders", [NewMessage(body=b"x")])
        await store.close()


async def test_a_server_that_becomes_unfit_while_running_is_503_and_says_why(
    tmp_path: Path,
) -> None:
    with RedisServer(tmp_path) as server:
        store = await QueueStore.open(server.url, **QUICK)
        server.kill()
        server.options["maxmemory-policy"] = "allkeys-random"
        server.start()
        with pytest.raises(RedisUnavailable, match="allkeys-random"):
            await store.stats("orders")
        server.client().config_set("maxmemory-policy", "noeviction")
        await store.pop("orders")
        await store.close()
