"""A node: ports first, then the data directory, then the cluster.

The ports listen before the log is replayed, so that probes are answered from the start. On SIGTERM
the node becomes unready, hands leadership over, writes the cache back, leaves the ring, goes on
forwarding for `drain_ms`, ends its long polls, stops its servers and writes what is queued. Exit
codes: 0 after a signal, 2 when it cannot start (one line says why), 3 when it had to stop by
itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
import uvloop

from distsync_node.api.app import build_peer_app, build_public_app
from distsync_node.api.direct import direct_protocol
from distsync_node.api.gateway import Gateway
from distsync_node.api.options import ApiOptions
from distsync_node.api.passing_on import PassingOn, Reception
from distsync_node.api.server import HttpProtocol
from distsync_node.cache.calls import CacheCalls
from distsync_node.cache.options import CacheOptions
from distsync_node.cache.service import CacheService
from distsync_node.cache.types import Durability
from distsync_node.descriptors import raise_limit
from distsync_node.errors import (
    ConfigConflict,
    DistSyncError,
    InvariantViolation,
    StartupError,
)
from distsync_node.logs import configure_logging
from distsync_node.peers import keepalive
from distsync_node.peers.client import PeerClient
from distsync_node.peers.endpoints import PeerEndpoints
from distsync_node.peers.inbound import message_protocol
from distsync_node.queues.endpoints import InternalEndpoints
from distsync_node.queues.owners import Owners
from distsync_node.queues.service import QueueService
from distsync_node.raft.types import RaftOptions
from distsync_node.replica.types import ReplicaOptions
from distsync_node.services.formation import Formation
from distsync_node.services.node import NodeService
from distsync_node.services.runtime import Runtime
from distsync_node.settings import Settings
from distsync_node.storage import Storage

logger = logging.getLogger(__name__)

# The disk thread must get the interpreter back soon after its fdatasync returns.
SWITCH_INTERVAL_SECONDS = 0.00005
TRANSFER_SECONDS = 1.0
WRITE_BACK_SECONDS = 30.0
LEAVE_RING_SECONDS = 1.0
LAST_ANSWERS_SECONDS = 0.25  # to nodes whose writes were on their way to this one
SHUTDOWN_SECONDS = 5
DIRTY_PART = 4  # of the bytes held here may wait for Redis, and again of those homed here
GC_THRESHOLDS = (50_000, 20, 50)


def run(settings: Settings) -> int:
    """Run a node until it is told to stop; return the exit code."""
    configure_logging(level=settings.log_level, node=settings.name)
    sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
    raise_limit()
    try:
        return uvloop.run(_Program(settings).run())
    except StartupError as error:
        print(f"distsync node: {error}", file=sys.stderr)  # noqa: T201 - the one line
        return 2


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the node."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Program:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._exit_code = 0

    async def run(self) -> int:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        public = _listen(settings.host, settings.port)
        peer = _listen(settings.host, settings.peer_port)
        keepalive.probe(peer)
        async with PeerClient(settings.secret, settings.name) as client:
            node = _Node(settings, client)
            queues = QueueService(settings.redis_url, Owners(node, client))
            cache = CacheService(
                settings.redis_url,
                node,
                client.target,
                options=_cache_options(settings),
                on_broken=lambda error: self._stopped_by_itself(str(error)),
            )
            node.before_serving(cache.is_at_work)
            node.before_leaving(lambda: cache.drain(None))
            options = ApiOptions(access_log=settings.access_log)
            calls = CacheCalls(cache, options.command_timeout_ms)
            internal = InternalEndpoints(queues)
            gateways = self._gateways(node, client, queues, internal, calls, options)
            receivers = {**node.receivers(), **cache.receivers(), **internal.receivers()}
            servers = [
                _server(gateways[0], direct_protocol(gateways[0])),
                _server(gateways[1], message_protocol(HttpProtocol, receivers, settings.secret)),
            ]
            serving = [
                asyncio.create_task(server.serve(sockets=[listener]))
                for server, listener in zip(servers, (public, peer), strict=True)
            ]
            try:
                await queues.start()
                await cache.start()
                await self._serve(node, client, queues, cache)
            finally:
                await calls.close()
                await cache.close()
                await queues.close()
                await _close(node, gateways, servers, serving)
        return self._exit_code

    def _gateways(
        self,
        node: _Node,
        client: PeerClient,
        queues: QueueService,
        internal: InternalEndpoints,
        calls: CacheCalls,
        options: ApiOptions,
    ) -> tuple[Gateway, Gateway]:
        settings = self._settings
        public = build_public_app(
            node,
            node_name=settings.name,
            queues=queues,
            cache_calls=calls,
            passing_on=PassingOn(calls.service, node, client),
            options=options,
            on_invariant_violation=self._broken,
        )
        peer = build_peer_app(
            node,
            settings.secret,
            {
                **PeerEndpoints(node).handlers(),
                **internal.handlers(),
                **Reception(public, node).handlers(),
            },
            node_name=settings.name,
            peer_url=settings.advertised_peer_url,
            client_url=settings.advertised_client_url,
            options=options,
            on_invariant_violation=self._broken,
        )
        return public, peer

    async def _serve(
        self, node: _Node, client: PeerClient, queues: QueueService, cache: CacheService
    ) -> None:
        settings = self._settings
        storage = await asyncio.to_thread(Storage.open, settings.data_dir)
        try:
            runtime = Runtime(
                storage,
                client.target,
                options=ReplicaOptions(
                    voters=settings.voters,
                    virtual_nodes=settings.virtual_nodes,
                    acknowledge_at_once=not settings.redis_url,
                ),
                raft_options=RaftOptions(
                    heartbeat_ms=settings.heartbeat_ms,
                    election_timeout_min_ms=settings.election_timeout_ms,
                    election_timeout_max_ms=2 * settings.election_timeout_ms,
                ),
                on_stop=self._stopped_by_itself,
            )
            storage.release_recovered()
            node.open(runtime, storage)
            runtime.start()
            _tune_gc()
            logger.info(
                "node %s (member %s) serves on port %d, peers on %d",
                settings.name,
                storage.member_id,
                settings.port,
                settings.peer_port,
            )
            formation = asyncio.create_task(Formation(settings, node, client).run())
            formation.add_done_callback(self._formation_ended)
            try:
                await self._stop.wait()
                await self._drain(node, cache)
            finally:
                node.end_requests()
                queues.end_polls()
                formation.cancel()
                await asyncio.gather(formation, return_exceptions=True)
                await runtime.close()
        finally:
            storage.close()

    def _broken(self, violation: InvariantViolation) -> None:
        logger.critical("a promise of the code is broken", exc_info=violation)
        self._stopped_by_itself(str(violation))

    def _formation_ended(self, formation: asyncio.Task[None]) -> None:
        """A node that no longer looks for its cluster would idle for ever, and nobody knew why."""
        if not formation.cancelled() and (error := formation.exception()) is not None:
            logger.critical("looking for the cluster failed", exc_info=error)
            self._stopped_by_itself(str(error))

    def _stopped_by_itself(self, _reason: str) -> None:
        self._exit_code = 3
        self._stop.set()

    async def _drain(self, node: _Node, cache: CacheService) -> None:
        """Leave in good order: unready, leadership handed over, still forwarding for a while."""
        node.draining = True
        if self._exit_code:
            return
        if node.status().role == "leader" and len(node.status().configuration.voters) > 1:
            with contextlib.suppress(DistSyncError, TimeoutError):
                async with asyncio.timeout(TRANSFER_SECONDS):
                    await node.transfer_leadership(None)
        await cache.drain(WRITE_BACK_SECONDS)
        stays_seconds = self._settings.drain_ms / 1_000
        if node.status().state == "member" and await node.leave_ring(LEAVE_RING_SECONDS):
            stays_seconds = max(stays_seconds, LAST_ANSWERS_SECONDS)
        await asyncio.sleep(stays_seconds)


class _Node(NodeService):
    """The service with what only the program can do."""

    def __init__(self, settings: Settings, client: PeerClient) -> None:
        super().__init__(settings.name, client)
        self._storage: Storage | None = None

    def open(self, runtime: Runtime, storage: Storage) -> None:
        """The data directory is read."""
        self._storage = storage
        self.attach(runtime)

    async def archive(self) -> str:
        """Move a removed member's data aside and restart empty."""
        if self._storage is None or not self._storage.removed:
            raise ConfigConflict("only a removed member can be archived")
        where = await asyncio.to_thread(self._storage.archive)
        self.runtime.stop("the data directory was archived; starting again empty")
        return str(where)


def _cache_options(settings: Settings) -> CacheOptions:
    return CacheOptions(
        durability=Durability(settings.cache_durability),
        durability_by_prefix=tuple(
            (prefix, Durability(mode)) for prefix, mode in settings.cache_durability_by_prefix
        ),
        max_bytes=settings.cache_max_bytes,
        max_dirty_bytes=settings.cache_max_bytes // DIRTY_PART,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _server(app: Gateway, protocol: type[asyncio.Protocol]) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            loop="none",
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            proxy_headers=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            backlog=1024,
        )
    )


async def _close(
    node: _Node,
    gateways: tuple[Gateway, Gateway],
    servers: list[_Server],
    serving: list[asyncio.Task[None]],
) -> None:
    await node.close()
    for gateway in gateways:
        gateway.close()
    for server in servers:
        server.should_exit = True
    await asyncio.gather(*serving, return_exceptions=True)


def _tune_gc() -> None:
    """What lives since the start is not scanned again; a full collection stops everything."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
