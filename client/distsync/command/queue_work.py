"""`distsync queue work NAME -- COMMAND`: a command for each message.

- The command has the body of the message as its standard input. Exit code 0 acknowledges it; after
  another it is given back with a delay that grows with its deliveries.
- The claim is extended while the command runs. When it cannot be, the command is told to stop
  (SIGTERM) a little before the claim's deadline and is killed with all it started (SIGKILL) at the
  deadline, which is before the cluster gives the message to another worker. When the cluster itself
  ended the claim (a purge), the same happens from that moment.
- A signal to the worker stops it: it claims nothing more, and commands that run have the grace to
  end. Those that have not are told to stop, then killed, and their messages given back at once. A
  second signal ends the grace. When the worker is killed, the kernel kills its commands.

The commands are process groups in the background: Ctrl-C at a terminal reaches the worker alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click

from distsync.client import AsyncClient
from distsync.command.after_dashes import AfterDashes, check_command
from distsync.command.child import ENDING, Child
from distsync.command.durations import DurationType, format_duration
from distsync.command.options import Options, cluster_options
from distsync.command.output import printable, render_json
from distsync.command.queue_options import queue_argument
from distsync.consumers import Consumer
from distsync.errors import ClaimLost
from distsync.messages import ClaimedMessage

_MAX_CONCURRENCY: Final = 1_000
_LONGEST_WARNING_SECONDS: Final = 2.0  # between SIGTERM and SIGKILL
_WARNING_RATIO: Final = 1 / 4  # of the visibility; the claim is extended long before


@click.command(cls=AfterDashes)
@queue_argument
@click.option(
    "--concurrency",
    type=click.IntRange(1, _MAX_CONCURRENCY),
    default=1,
    show_default=True,
    metavar="N",
    help="How many commands run at a time.",
)
@click.option(
    "--visibility",
    type=DurationType(least_ms=1_000, most_ms=12 * 3_600_000),
    default="30s",
    show_default=True,
    help="When the worker dies, its messages come again after at most this.",
)
@click.option(
    "--grace",
    type=DurationType(),
    default="30s",
    show_default=True,
    help="For the commands that run when the worker is stopped.",
)
@cluster_options
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def work(
    options: Options,
    name: str,
    command: tuple[str, ...],
    *,
    concurrency: int,
    visibility: int,
    grace: int,
) -> None:
    """Run a command for each message of a queue, until stopped by a signal.

    Write -- before the command. The message is its standard input; it finds DISTSYNC_QUEUE,
    DISTSYNC_MESSAGE_ID, DISTSYNC_DELIVERIES and DISTSYNC_URL in its environment. Exit code 0
    acknowledges the message; after any other it comes again later.

    Ctrl-C or SIGTERM: nothing more is claimed, and commands have --grace to end. Another ends them.
    """
    check_command(command[0])
    plan = _Plan(
        name=name,
        command=command,
        urls=options.urls,
        concurrency=concurrency,
        visibility_seconds=visibility / 1000,
        grace_seconds=grace / 1000,
    )
    reporter = _Reporter(name, as_json=options.json)
    with reporter.taking_log():
        asyncio.run(_Worker(plan, reporter).run())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    name: str
    command: Sequence[str]
    urls: tuple[str, ...]
    concurrency: int
    visibility_seconds: float
    grace_seconds: float

    @property
    def warning_seconds(self) -> float:
        """How long a command may take to end by itself when its claim ends."""
        return min(_LONGEST_WARNING_SECONDS, self.visibility_seconds * _WARNING_RATIO)


class _CommandFailed(Exception):
    """The command ended with another code than 0; that was reported."""


class _Worker:
    def __init__(self, plan: _Plan, reporter: _Reporter) -> None:
        self._plan = plan
        self._reporter = reporter
        self._running: set[Child] = set()
        self._signals = 0

    async def run(self) -> None:
        """Work until stopped.

        Raises:
            DistSyncError: the cluster refused to give messages, for another reason than an outage.
        """
        plan = self._plan
        async with AsyncClient(plan.urls) as client:
            consumer = client.queue(plan.name).consume(
                concurrency=plan.concurrency, visibility=plan.visibility_seconds
            )
            consuming = asyncio.ensure_future(consumer.run(self._handle, grace=plan.grace_seconds))
            loop = asyncio.get_running_loop()
            for number in ENDING:
                loop.add_signal_handler(number, self._stop, consumer, consuming)
            loop.add_signal_handler(signal.SIGTSTP, self._pause)
            await asyncio.wait([consuming])
            if not consuming.cancelled():
                consuming.result()

    # --- Signals ----------------------------------------------------------------------------

    def _stop(self, consumer: Consumer, consuming: asyncio.Future[None]) -> None:
        self._signals += 1
        if self._signals == 1:
            self._reporter.stopping(len(self._running), self._plan.grace_seconds)
            consumer.stop()
        elif not consumer.is_grace_over:
            consuming.cancel()

    def _pause(self) -> None:
        """Ctrl-Z: the commands stop with us. Claims that end meanwhile are lost when we go on."""
        for child in self._running:
            child.stop()
        os.kill(os.getpid(), signal.SIGSTOP)  # returns when somebody continues us
        for child in self._running:
            child.go_on()

    # --- One message ------------------------------------------------------------------------

    async def _handle(self, message: ClaimedMessage) -> None:
        with _as_file(message.body) as stdin:
            child = await Child.start_apart(self._plan.command, self._environment(message), stdin)
        self._running.add(child)
        try:
            code = await self._attend(child, message)
        finally:
            self._running.discard(child)
        self._reporter.exited(message, code)
        if code:
            raise _CommandFailed

    async def _attend(self, child: Child, message: ClaimedMessage) -> int:
        """Wait for the command for as long as its claim lasts; return its exit code."""
        is_warned = False
        waiting = asyncio.ensure_future(child.wait())
        try:
            while not waiting.done():
                safe_seconds = message.expires_in() - self._plan.warning_seconds
                if safe_seconds <= 0:
                    is_warned = True
                    await child.end(message.expires_in())
                    break
                await asyncio.wait({waiting}, timeout=safe_seconds)
            message.check()
            return await waiting
        except asyncio.CancelledError:  # the claim is lost, or the grace is over
            await _end(child, 0.0 if is_warned else self._plan.warning_seconds)
            if message.expires_in():
                self._reporter.ended(message)
            raise
        finally:
            waiting.cancel()

    def _environment(self, message: ClaimedMessage) -> dict[str, str]:
        return {
            **os.environ,
            "DISTSYNC_QUEUE": message.queue,
            "DISTSYNC_MESSAGE_ID": message.id,
            "DISTSYNC_DELIVERIES": str(message.deliveries),
            "DISTSYNC_URL": ",".join(self._plan.urls),
        }


async def _end(child: Child, grace_seconds: float) -> None:
    """End a command for certain, also when this is cancelled meanwhile."""
    try:
        await child.end(grace_seconds)
    except BaseException:
        child.kill()
        raise


@contextlib.contextmanager
def _as_file(body: str) -> Iterator[int]:
    """Give a body the shape of a file in memory: a command need not read it, nor all of it."""
    descriptor = os.memfd_create("distsync-message")
    try:
        data = memoryview(body.encode())
        while data:
            data = data[os.write(descriptor, data) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


class _Reporter(logging.Handler):
    """Tells on stderr what happens: a line for a person, or all events as JSON."""

    def __init__(self, queue: str, *, as_json: bool) -> None:
        super().__init__(logging.WARNING)
        self._queue = queue
        self._as_json = as_json

    @contextlib.contextmanager
    def taking_log(self) -> Iterator[None]:
        """Take what the client library logs."""
        log = logging.getLogger("distsync")
        propagated, log.propagate = log.propagate, False
        log.addHandler(self)
        try:
            yield
        finally:
            log.removeHandler(self)
            log.propagate = propagated

    def exited(self, message: ClaimedMessage, code: int) -> None:
        """A command ended by itself."""
        if code or self._as_json:
            self._of(message, "exited", f"exit code {code}", exit_code=code)

    def ended(self, message: ClaimedMessage) -> None:
        """A command was ended because the worker ends."""
        self._of(message, "ended", "its command was ended with the worker")

    def stopping(self, running: int, grace_seconds: float) -> None:
        """A signal came; a person at the terminal is told what is waited for."""
        if self._as_json:
            self._tell("stopping", "", running=running)
        elif running and sys.stderr.isatty():
            grace = format_duration(int(grace_seconds * 1000))
            text = f"commands that run have {grace}; a second signal ends them"
            self._tell("stopping", text)

    def emit(self, record: logging.LogRecord) -> None:
        """Tell what the library logs, on one line."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _CommandFailed):
            return
        lost = [one for one in _arguments(record) if isinstance(one, ClaimLost)]
        if lost:
            self._tell("claim_lost", lost[0].detail)
            return
        text = record.getMessage()
        self._tell("warning", text if error is None else f"{text}: {error!r}")

    def _of(self, message: ClaimedMessage, event: str, text: str, **fields: Any) -> None:
        fields |= {"id": message.id, "deliveries": message.deliveries}
        delivery = f"delivery {message.deliveries}"
        self._tell(event, f"{self._queue}, message {message.id}, {delivery}: {text}", **fields)

    def _tell(self, event: str, text: str, **fields: Any) -> None:
        if self._as_json:
            said = {"event": event, "queue": self._queue, **fields}
            click.echo(render_json(said | ({"detail": text} if text else {})), err=True)
        else:
            click.echo(f"distsync: {printable(' '.join(text.split()))}", err=True)


def _arguments(record: logging.LogRecord) -> Sequence[object]:
    return record.args if isinstance(record.args, tuple) else ()
