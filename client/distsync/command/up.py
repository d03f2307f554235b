"""`distsync up`: a cluster of real nodes on this machine, for trying things and for tests."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from distsync.command.bootstrap import plan_creation
from distsync.command.calls import Caller, Identity
from distsync.command.cluster_dir import ClusterDir, Shape
from distsync.command.failures import ExitCode, Failure
from distsync.command.local_redis import NAME, LocalRedis, find_server, prepare
from distsync.command.options import Options, output_option
from distsync.command.output import emit, render_json
from distsync.command.readiness import what_is_missing
from distsync.command.supervisor import Ended, NodeSpec, Started, Supervisor, describe_exit
from distsync.errors import OutcomeUnknown, Unavailable
from distsync.models import ClusterStatus, Nothing

_HOST = "127.0.0.1"
_PEER_PORT_OFFSET = 100
_MOST_NODES = 9
_READY_DEADLINE_SECONDS = 120.0
_PORT_DEADLINE_SECONDS = 1.0
_POLL_SECONDS = 0.05

_Answer = TypeVar("_Answer")


@click.command(context_settings={"show_default": True})
@click.option(
    "--nodes",
    type=click.IntRange(1, _MOST_NODES),
    metavar="N",
    show_default="3, or as before",
    help="How many, 1 to 9.",
)
@click.option(
    "--base-port",
    type=click.IntRange(0, 65535 - _PEER_PORT_OFFSET - _MOST_NODES),
    metavar="PORT",
    show_default="8080, or as before",
    help="Node i listens on this + i, and on this + i + 100 for other nodes.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=".distsync",
    help="Where the nodes keep their data, logs and the shared secret.",
)
@click.option("--fresh", is_flag=True, help="Remove what an earlier cluster left there.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Of the nodes.",
)
@click.option(
    "--redis",
    "redis_url",
    envvar="DISTSYNC_REDIS",
    metavar="URL",
    help="Use this Redis for the queues, instead of starting one here.",
)
@click.option("--no-redis", is_flag=True, help="No Redis at all, and so no queues.")
@output_option()
@click.pass_obj
def up(
    options: Options,
    nodes: int | None,
    base_port: int | None,
    data_dir: Path,
    fresh: bool,
    log_level: str,
    redis_url: str | None,
    no_redis: bool,
) -> None:
    """Run a cluster on this machine until Ctrl-C.

    Data is kept: started again with the same directory, the cluster goes on where it was. The logs
    of the nodes are beside it, as node-1.log and so on. A Redis server for the queues runs with it.
    """
    _check_redis_options(no_redis)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(ClusterDir.open(data_dir, fresh=fresh))
        shape = _shape(directory, nodes, base_port)
        _check_ports(shape)
        directory.save(shape)
        directory.secret()
        specs = _specs(directory, shape, log_level)
        redis = None
        if no_redis:
            redis_url = None
        elif not redis_url and (redis := _local_redis(directory, stack)) is not None:
            redis_url = redis.url
        asyncio.run(_Up(directory, specs, redis, _environment(redis_url), options).run())


def _check_redis_options(no_redis: bool) -> None:
    # The variable may be there for other commands: only the option contradicts --no-redis.
    given = click.get_current_context().get_parameter_source("redis_url")
    if no_redis and given is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--redis and --no-redis exclude each other.")


def _local_redis(directory: ClusterDir, stack: contextlib.ExitStack) -> LocalRedis | None:
    """Return the server to start, if this machine has one; what `stack` ends goes with it."""
    try:
        program = find_server()
    except Failure as missing:
        click.echo(f"distsync: queues are off: {missing.message}", err=True)
        return None
    return stack.enter_context(prepare(program, directory.redis_dir, directory.log_file(NAME)))


def _environment(redis_url: str | None) -> dict[str, str]:
    """Return the environment of the nodes: ours, with the Redis that was chosen and no other."""
    environment = {name: value for name, value in os.environ.items() if name != "DISTSYNC_REDIS"}
    if redis_url:
        environment["DISTSYNC_REDIS"] = redis_url
    return environment


def _shape(directory: ClusterDir, nodes: int | None, base_port: int | None) -> Shape:
    before = directory.shape
    if before is None:
        return Shape(
            nodes=3 if nodes is None else nodes, base_port=8080 if base_port is None else base_port
        )
    if base_port is not None and base_port != before.base_port:
        raise Failure(
            f"{directory.path} holds a cluster with base port {before.base_port}: "
            "start it with that one, or with --fresh to remove it",
            exit_code=ExitCode.USAGE,
        )
    if nodes is not None and nodes < before.nodes:
        raise Failure(
            f"{directory.path} holds a cluster of {before.nodes} nodes: "
            "start as many, or remove members first, or remove it with --fresh",
            exit_code=ExitCode.USAGE,
        )
    return Shape(
        nodes=before.nodes if nodes is None else nodes,
        base_port=before.base_port,
        genesis=before.genesis,
    )


def _check_ports(shape: Shape) -> None:
    """Find a taken port before anything is started; one that is just being freed is awaited."""
    deadline = time.monotonic() + _PORT_DEADLINE_SECONDS
    for number in range(1, shape.nodes + 1):
        for port in (shape.base_port + number, shape.base_port + number + _PEER_PORT_OFFSET):
            while (reason := _why_not(port)) is not None:
                if time.monotonic() > deadline:
                    raise Failure(
                        f"port {port} of node-{number} {reason}; choose another --base-port",
                        exit_code=ExitCode.USAGE,
                        code="port_taken",
                    )
                time.sleep(_POLL_SECONDS)


def _why_not(port: int) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "is taken"
            return f"cannot be used ({error.strerror})"
    return None


def _specs(directory: ClusterDir, shape: Shape, log_level: str) -> tuple[NodeSpec, ...]:
    ports = {f"node-{i}": shape.base_port + i for i in range(1, shape.nodes + 1)}
    peer_urls = {name: f"http://{_HOST}:{port + _PEER_PORT_OFFSET}" for name, port in ports.items()}
    members = ",".join(f"{name}={url}" for name, url in peer_urls.items())
    return tuple(
        NodeSpec(
            name=name,
            arguments=(
                f"--name={name}",
                f"--data-dir={directory.node_dir(name)}",
                f"--host={_HOST}",
                f"--port={port}",
                f"--peer-port={port + _PEER_PORT_OFFSET}",
                f"--peer-url={peer_urls[name]}",
                f"--client-url=http://{_HOST}:{port}",
                f"--members={members}",
                "--no-bootstrap",
                f"--secret-file={directory.secret_file}",
                f"--log-level={log_level}",
            ),
            client_url=f"http://{_HOST}:{port}",
            peer_url=peer_urls[name],
        )
        for name, port in ports.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    leader: str
    cluster_id: str | None


class _Up:
    def __init__(
        self,
        directory: ClusterDir,
        specs: Sequence[NodeSpec],
        redis: LocalRedis | None,
        environment: Mapping[str, str],
        options: Options,
    ) -> None:
        self._directory = directory
        self._specs = specs
        self._redis = redis
        self._environment = environment
        self._options = options
        self._missing = "no node has been started"
        self._ready = False
        self._stopped = False

    async def run(self) -> None:
        supervisor = Supervisor(
            self._specs,
            redis=self._redis,
            environment=self._environment,
            log_file=self._directory.log_file,
            on_event=self._report,
        )
        loop = asyncio.get_running_loop()

        def stop() -> None:
            if not self._stopped:
                self._tell("stopping")
            self._stopped = True
            starting.cancel()
            supervisor.stop()

        self._tell(f"starting {len(self._specs)} nodes in {self._directory.path}")
        running = loop.create_task(supervisor.run())
        starting = loop.create_task(self._start(supervisor))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop)
        try:
            await asyncio.wait({running, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done() and not starting.cancelled():
                starting.result()
            await running
        finally:
            if not running.done():
                supervisor.stop()
                await asyncio.wait({running})
            starting.cancel()

    async def _start(self, supervisor: Supervisor) -> None:
        async with Caller(secret=self._directory.secret(), deadline_seconds=2.0) as caller:
            forming = asyncio.ensure_future(self._form(caller))
            either: set[asyncio.Future[Any]] = {forming, supervisor.refused}
            await asyncio.wait(
                either,
                timeout=_READY_DEADLINE_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not forming.done():
                forming.cancel()
                raise self._not_ready(supervisor)
            ready = forming.result()
        supervisor.settle()
        self._ready = True
        self._announce(ready, supervisor.pid)

    def _not_ready(self, supervisor: Supervisor) -> Failure:
        if supervisor.refused.done():
            name = supervisor.refused.result()
            why = self._directory.last_words(name).removeprefix("distsync: ")
            return Failure(f"{name} cannot start: {why}", exit_code=ExitCode.USAGE, code="startup")
        return Failure(
            f"the cluster was not ready after {_READY_DEADLINE_SECONDS:.0f} seconds: "
            f"{self._missing}; see the logs in {self._directory.path}"
        )

    async def _form(self, caller: Caller) -> _Ready:
        """Create the cluster if that may be done, then wait until all its members serve."""
        identities = {}
        for spec in self._specs:
            self._missing = f"{spec.name} does not answer"
            ask = functools.partial(_identity, caller, spec.peer_url)
            identities[spec.name] = await _until_answered(ask)
        shape = self._directory.shape
        if shape is None:
            raise Failure(f"{self._directory.path} has lost its distsync-up.json")
        if (creation := plan_creation(identities, shape.genesis)) is not None:
            # On disk first: the same words must be at hand if we are interrupted half way.
            self._directory.save(msgspec.structs.replace(shape, genesis=creation.genesis))
            for spec in self._specs:
                if spec.name in creation.names:
                    self._missing = f"{spec.name} does not take the first configuration"
                    url = f"{spec.peer_url}/cluster/bootstrap"
                    body = creation.genesis
                    await _until_answered(functools.partial(caller.post, url, body, Nothing))
        return await self._all_serve(caller)

    async def _all_serve(self, caller: Caller) -> _Ready:
        urls = [f"{spec.client_url}/cluster/status" for spec in self._specs]
        while True:
            calls = (caller.get(url, ClusterStatus) for url in urls)
            answers = await asyncio.gather(*calls, return_exceptions=True)
            statuses = [one if isinstance(one, ClusterStatus) else None for one in answers]
            names = (spec.name for spec in self._specs)
            missing = what_is_missing(dict(zip(names, statuses, strict=True)))
            if missing is None:
                return _ready(statuses)
            self._missing = missing
            await asyncio.sleep(_POLL_SECONDS)

    def _announce(self, ready: _Ready, pid: Callable[[str], int | None]) -> None:
        urls = [spec.client_url for spec in self._specs]
        if not self._options.json:
            emit(f"distsync is ready: {' '.join(urls)} (leader {ready.leader}; Ctrl-C stops it)")
            return
        line = {
            "event": "ready",
            "urls": urls,
            "leader": ready.leader,
            "cluster_id": ready.cluster_id,
            "data_dir": str(self._directory.path.resolve()),
            "secret_file": str(self._directory.secret_file.resolve()),
            "nodes": [
                {
                    "name": spec.name,
                    "url": spec.client_url,
                    "peer_url": spec.peer_url,
                    "pid": pid(spec.name),
                }
                for spec in self._specs
            ],
            # Only the one that was started here: the URL of another may hold a password.
            "redis": self._redis and {"url": self._redis.url, "pid": pid(NAME)},
        }
        emit(render_json(line))

    @staticmethod
    def _tell(what: str) -> None:
        """Say to a person who sits and waits what is going on; a log has no use for it."""
        if sys.stderr.isatty():
            click.echo(f"distsync: {what}", err=True)

    def _report(self, event: Started | Ended) -> None:
        if self._stopped:
            return
        match event:
            case Started():
                if self._ready and self._options.json:
                    emit(render_json({"event": "started", "node": event.node, "pid": event.pid}))
            case Ended():
                self._report_end(event)

    def _report_end(self, event: Ended) -> None:
        how = describe_exit(event.exit_code)
        if self._options.json:
            line = {"event": "ended", "node": event.node, "exit_code": event.exit_code}
            emit(render_json(line))
        said = self._directory.last_words(event.node) if event.exit_code > 0 else ""
        click.echo(
            f"distsync: {event.node} ended ({how}{': ' if said else ''}{said}); "
            f"starting it again in {event.pause_seconds:g}s",
            err=True,
        )


def _ready(statuses: Iterable[ClusterStatus | None]) -> _Ready:
    member = next(one for one in statuses if one is not None and one.state != "removed")
    return _Ready(leader=member.leader or "", cluster_id=member.cluster_id)


async def _identity(caller: Caller, peer_url: str) -> Identity:
    """Ask a node who it is.

    Raises:
        Unavailable: it does not answer, or has not read its disk yet and so does not know.
    """
    identity = await caller.get(f"{peer_url}/cluster/identity", Identity)
    if not identity.member_id:
        raise Unavailable(f"{peer_url} is still starting")
    return identity


async def _until_answered(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Repeat a call that may be repeated until the node, which is just starting, answers."""
    while True:
        try:
            return await call()
        except (Unavailable, OutcomeUnknown):
            await asyncio.sleep(_POLL_SECONDS)
