"""`distsync-operator`: hold the Lease, then look after every resource until told to stop.

Exit codes: 0 after a signal, 2 when it cannot start (one line says why), 3 when it lost its Lease
or had to stop by itself; whatever runs it starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine

import kopf
from kopf._core.engines.peering import Identity  # a name for str, nowhere else
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from distsync_operator import handlers, names
from distsync_operator.elector import Elector, LeaseLost, LeaseTimes
from distsync_operator.errors import OperatorError
from distsync_operator.kube import Kube
from distsync_operator.metrics import Metrics
from distsync_operator.settings import Settings, read_settings
from distsync_operator.web import serve
from distsync_operator.worker import Pace, Shared, Workers

logger = logging.getLogger(__name__)
DEFINITION_SECONDS = 2.0


class _Told(Exception):
    """kopf was told to stop: it takes the signals over while it runs."""


def main() -> None:
    """Run the operator until it is told to stop, and exit."""
    try:
        settings = read_settings(os.environ)
    except OperatorError as error:
        print(f"distsync-operator: {error}", file=sys.stderr)  # noqa: T201 - the one line
        sys.exit(2)
    kopf.configure(
        verbose=settings.log_level == "debug",
        quiet=settings.log_level in ("warning", "error"),
        log_format=kopf.LogFormat.JSON,
    )
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        code = asyncio.run(run(settings))
    except (OSError, ConfigException) as error:
        print(f"distsync-operator: {error}", file=sys.stderr)  # noqa: T201 - the one line
        code = 2
    sys.exit(code)


async def run(settings: Settings, pace: Pace | None = None, times: LeaseTimes | None = None) -> int:
    """Run the operator; return the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    metrics = Metrics()
    async with _client() as client, serve(metrics, settings.port):
        elector = Elector(
            Kube(client), settings.namespace, settings.lease, settings.pod, times or LeaseTimes()
        )
        shared = Shared(Kube(client), settings.defaults, metrics, pace or Pace())
        return await _until(stop, _work(settings, elector, shared), elector)


@contextlib.asynccontextmanager
async def _client() -> AsyncIterator[ApiClient]:
    """Connect as the pod's account, or as the kubeconfig says."""
    configuration = Configuration()
    if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    else:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    async with ApiClient(configuration) as client:
        yield client


async def _until(stop: asyncio.Event, work: Coroutine[None, None, None], elector: Elector) -> int:
    """Work until told to stop, or until the work ends by itself, which it should not."""
    task = asyncio.create_task(work)
    told = asyncio.create_task(stop.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    task.cancel()
    (ended,) = await asyncio.gather(task, return_exceptions=True)
    if ended is not None and not isinstance(ended, asyncio.CancelledError):
        logger.critical("the operator stops by itself: %s", ended, exc_info=ended)
        return 3
    await elector.release()
    return 0


async def _wait_for_definition(kube: Kube) -> None:
    """Return once the API server has the resource: kopf may not notice one that comes later."""
    while not await kube.serves(f"{names.GROUP}/{names.VERSION}", names.PLURAL):
        logger.warning("the API server has no %s.%s yet", names.PLURAL, names.GROUP)
        await asyncio.sleep(DEFINITION_SECONDS)


async def _work(settings: Settings, elector: Elector, shared: Shared) -> None:
    await elector.acquire()
    shared.metrics.leading.set(1)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(elector.keep())
            workers = Workers(shared, group)
            await _wait_for_definition(shared.kube)
            await kopf.operator(
                registry=handlers.register(workers),
                settings=handlers.settings(clusterwide=not settings.namespaces),
                standalone=True,
                clusterwide=not settings.namespaces,
                namespaces=settings.namespaces,
                stop_flag=asyncio.Event(),
                # Left to itself kopf asks for the name of the user, and an image has none.
                identity=Identity(settings.pod),
            )
            raise _Told
    except ExceptionGroup as errors:
        lost, _ = errors.split(LeaseLost)
        _, failed = errors.split(_Told)
        if failed is not None:
            raise (lost or failed).exceptions[0] from None
    finally:
        shared.metrics.leading.set(0)
