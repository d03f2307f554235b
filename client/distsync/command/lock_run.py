"""`distsync lock run NAME -- COMMAND`: a command that runs only while a lock is held.

The command has ended before its lease ends, as far as a process can promise that: when the lease
cannot be renewed it is told to stop (SIGTERM) a grace before the deadline, and is killed with all
it started (SIGKILL) at the deadline, which is before the cluster gives the lock to another. When
the cluster itself ended the grant (a forced release), the same happens from that moment. When this
process is killed the kernel kills the command. What must be exact beyond that carries the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import click

from distsync.client import AsyncClient
from distsync.command.after_dashes import AfterDashes, check_command
from distsync.command.child import ENDING, Child
from distsync.command.durations import DurationType
from distsync.command.failures import ExitCode, Failure
from distsync.command.lock_options import LockRequest, holders_of, lock_options, why_not
from distsync.command.options import Options, cluster_options
from distsync.command.output import printable
from distsync.errors import DistSyncError, LockLost
from distsync.locks import Lock

_TELL_AFTER_SECONDS = 0.3


@click.command(cls=AfterDashes)
@lock_options
@click.option("--wait", type=DurationType(), help="How long to wait for it.  [default: for ever]")
@click.option(
    "--grace",
    type=DurationType(),
    default="2s",
    show_default=True,
    help="Between SIGTERM and SIGKILL when the lock is lost; at most a third of --ttl.",
)
@cluster_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def run(
    options: Options, /, command: tuple[str, ...], grace: int, wait: int | None, **request: Any
) -> None:
    """Run a command while holding a lock; end it when the lock is lost.

    Write -- before the command. Signals are passed on to it, and its exit code is passed back
    (128 + n after signal n). Own exit codes: 75 when the lock was not acquired, so the command not
    started; 76 when the lock was lost, so the command ended; 126 or 127 when it cannot be run.

    The command finds DISTSYNC_LOCK_NAME, DISTSYNC_LOCK_TOKEN, DISTSYNC_LOCK_OWNER and DISTSYNC_URL
    in its environment.
    """
    check_command(command[0])
    job = _Job(LockRequest(wait=wait, **request), command, options.urls, grace / 1000)
    raise click.exceptions.Exit(asyncio.run(job.run()))


class _Job:
    def __init__(
        self,
        request: LockRequest,
        command: Sequence[str],
        urls: tuple[str, ...],
        grace_seconds: float,
    ) -> None:
        self._request = request
        self._command = command
        self._urls = urls
        self._grace_seconds = min(grace_seconds, request.ttl / 3000)
        self._started = False
        self._warned = False  # the command was told to stop because of the lock
        self._ended_with: int | None = None

    async def run(self) -> int:
        """Acquire, run, release; return the exit code."""
        async with AsyncClient(self._urls) as client:
            lock = self._request.of(client)
            try:
                async with _cancelled_by_signals(), self._held(client, lock):
                    return await self._run_command(lock)
            except DistSyncError as error:
                if self._started:
                    raise self._lost(error) from None
                raise await self._not_started(client, error) from None
            except _Signalled as signalled:
                return ExitCode.SIGNALLED + signalled.number

    @contextlib.asynccontextmanager
    async def _held(self, client: AsyncClient, lock: Lock) -> AsyncIterator[None]:
        telling = asyncio.ensure_future(self._tell_who_holds_it(client))
        try:
            async with lock:
                telling.cancel()
                yield
        finally:
            telling.cancel()

    async def _tell_who_holds_it(self, client: AsyncClient) -> None:
        await asyncio.sleep(_TELL_AFTER_SECONDS)
        name = self._request.name
        if owners := await holders_of(client, name):
            click.echo(f"distsync: waiting for {printable(name)}, held by {owners}", err=True)

    async def _run_command(self, lock: Lock) -> int:
        self._started = True
        child = await Child.start(self._command, self._environment(lock))
        waiting = asyncio.ensure_future(child.wait())
        try:
            while not waiting.done():
                safe_seconds = lock.expires_in() - self._grace_seconds
                if safe_seconds <= 0:
                    self._warned = True
                    await child.end(lock.expires_in())
                    raise LockLost("its lease could not be renewed in time")
                await asyncio.wait({waiting}, timeout=safe_seconds)
            self._ended_with = waiting.result()
            return self._ended_with
        except asyncio.CancelledError:  # lost
            await child.end(0.0 if self._warned else self._grace_seconds)
            raise
        finally:
            waiting.cancel()

    def _environment(self, lock: Lock) -> dict[str, str]:
        return {
            **os.environ,
            "DISTSYNC_LOCK_NAME": lock.name,
            "DISTSYNC_LOCK_TOKEN": str(lock.token),
            "DISTSYNC_LOCK_OWNER": lock.owner or "",
            "DISTSYNC_URL": ",".join(self._urls),
        }

    async def _not_started(self, client: AsyncClient, error: DistSyncError) -> Failure:
        return Failure(
            f"the command was not started: {await why_not(client, self._request.name, error)}",
            exit_code=ExitCode.NOT_NOW,
            code=error.code,
        )

    def _lost(self, error: DistSyncError) -> Failure:
        how = (
            f"the command had ended by itself, with {self._ended_with}"
            if self._ended_with is not None
            else "the command was ended"
        )
        return Failure(
            f"{how}: lost {error.detail} ({error.code})",
            exit_code=ExitCode.LOCK_LOST,
            code=error.code,
        )


class _Signalled(Exception):
    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.asynccontextmanager
async def _cancelled_by_signals() -> AsyncIterator[None]:
    """Turn a signal that comes while we wait for the lock into a cancelled wait.

    Once the command runs, `Child` takes the signals to pass them on.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("signals need a task to cancel")
    received: list[int] = []

    def cancel(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, cancel, number)
    try:
        yield
    except asyncio.CancelledError:
        if not received:
            raise
        task.uncancel()
        raise _Signalled(received[0]) from None
