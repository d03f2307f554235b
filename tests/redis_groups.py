"""Several real Redis servers together: a cluster of three primaries, a primary under a Sentinel."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import redis

from process.running import eventually, reserved_port
from redis_server import RedisServer, is_free

SLOTS = 16_384
BUS_PORT_OFFSET = 10_000


def free_cluster_port() -> int:
    """Return a port that is free together with that of the cluster bus above it."""
    while True:
        port = reserved_port()
        if port + BUS_PORT_OFFSET < 65_536 and is_free(port + BUS_PORT_OFFSET):
            return port


class RedisCluster:
    """Three primaries that share the slots."""

    def __init__(self, directory: Path, program: str | None = None) -> None:
        options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
        self.servers = [
            RedisServer(
                directory / str(number), port=free_cluster_port(), options=options, program=program
            )
            for number in range(3)
        ]

    @property
    def url(self) -> str:
        """Where it is, by two of its three."""
        nodes = ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])
        return f"redis+cluster://{nodes}"

    def ids(self) -> list[str]:
        """Return the names that the nodes have among each other."""
        return [
            server.client().execute_command("CLUSTER", "MYID").decode() for server in self.servers
        ]

    def owner(self, slot: int) -> int:
        """Return the index of the server that has a slot."""
        for first, last, (_, port, *_), *_ in (
            self.servers[0].client().execute_command("CLUSTER SLOTS")
        ):
            if first <= slot <= last:
                return next(i for i, one in enumerate(self.servers) if one.port == port)
        raise LookupError(slot)

    def move(self, slot: int, to: int, at_each_key: Callable[[], None] = lambda: None) -> None:
        """Move a slot with its keys to another server, while clients use it."""
        ids, source = self.ids(), self.owner(slot)
        old, new = self.servers[source].client(), self.servers[to].client()
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to])
        while keys := old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1):
            at_each_key()
            port = self.servers[to].port
            old.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5_000, "KEYS", *keys)
        for server in self.servers:
            server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[to])
        eventually(lambda: self.owner(slot) == to, what="the slot has moved")

    def start(self) -> None:
        """Start the servers and have them meet."""
        for server in self.servers:
            server.start()
        for index, server in enumerate(self.servers):
            slots = range(index * SLOTS // 3, (index + 1) * SLOTS // 3)
            client = server.client()
            client.execute_command("CLUSTER", "ADDSLOTS", *slots)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)

        def is_whole() -> bool:
            told = [server.client().execute_command("CLUSTER INFO") for server in self.servers]
            return all(
                one["cluster_state"] == "ok" and one["cluster_known_nodes"] == "3" for one in told
            )

        eventually(is_whole, what="the cluster is whole")


@contextlib.contextmanager
def redis_cluster(directory: Path, program: str | None = None) -> Iterator[RedisCluster]:
    """A running cluster."""
    cluster = RedisCluster(directory, program)
    try:
        cluster.start()
        yield cluster
    finally:
        for server in cluster.servers:
            server.__exit__(None, None, None)


class Watched:
    """A primary and a replica, and a Sentinel that watches them."""

    SERVICE = "queues"

    def __init__(self, directory: Path) -> None:
        options = {"repl-diskless-sync-delay": "0"}
        self.primary = RedisServer(directory / "primary", port=reserved_port(), options=options)
        options = {**options, "replicaof": f"127.0.0.1 {self.primary.port}"}
        self.replica = RedisServer(directory / "replica", port=reserved_port(), options=options)
        self.sentinel_port = reserved_port()
        self._configuration = directory / "sentinel" / "sentinel.conf"
        self.sentinel = RedisServer(
            directory / "sentinel", port=self.sentinel_port, arguments=self._arguments()
        )

    def _arguments(self) -> list[str]:
        name = self.SERVICE
        lines = [
            f"sentinel monitor {name} 127.0.0.1 {self.primary.port} 1",
            f"sentinel down-after-milliseconds {name} 1500",
            f"sentinel failover-timeout {name} 3000",
        ]
        self._configuration.parent.mkdir(parents=True)
        self._configuration.write_text("\n".join(lines) + "\n")
        return [str(self._configuration), "--sentinel"]

    def url(self, replicas: int) -> str:
        """Where it is; `replicas` must have a write before it is acknowledged."""
        return f"redis+sentinel://127.0.0.1:{self.sentinel_port}/{self.SERVICE}?replicas={replicas}"

    def start(self) -> None:
        """Start all three, the replica in step."""
        self.primary.start()
        self.replica.start()
        eventually(
            lambda: self.replica.client().info("replication")["master_link_status"] == "up",
            what="the replica is in step",
        )
        self.sentinel.start()
        eventually(self._knows_the_replica, what="the sentinel knows the replica")

    def _knows_the_replica(self) -> bool:
        with redis.Redis(port=self.sentinel_port) as client:
            return len(client.execute_command("SENTINEL", "REPLICAS", self.SERVICE)) == 1

    def cut_replication(self) -> None:
        """Have the replica, which hears no more, not connect again until it is resumed."""
        self.replica.pause()
        self.primary.client().execute_command("CLIENT", "KILL", "TYPE", "replica")

    def wait_for_failover(self) -> None:
        """Return once the replica is the primary."""
        eventually(
            lambda: self.replica.client().info("replication")["role"] == "master",
            what="the replica is promoted",
        )


@contextlib.contextmanager
def watched_redis(directory: Path) -> Iterator[Watched]:
    """A running primary, replica and Sentinel."""
    watched = Watched(directory)
    try:
        watched.start()
        yield watched
    finally:
        for server in (watched.sentinel, watched.replica, watched.primary):
            server.__exit__(None, None, None)
