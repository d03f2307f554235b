"""A command that runs for us: in a process group of its own, in the foreground if we are, and never
longer than we want it or live ourselves.

The group makes it possible to end the command with everything it started. A group of its own would
be in the background of the terminal, so it is given the foreground, as a shell does for a job; when
it is stopped there (Ctrl-Z), so are we, and whoever brings us back continues it.

A command that is one of several stays in the background, and signals stay with us.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from distsync.command.failures import ExitCode

# What says that it is time to end; of a command, all its group is told.
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_TO_THE_COMMAND: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_POLL_SECONDS = 0.02
_LAUNCHER = Path(__file__).with_name("parent.py")
_TERMINAL = 0


class Child:
    """A running command; `Child.start` makes one."""

    def __init__(self, process: asyncio.subprocess.Process, *, foreground: bool = False) -> None:
        self._process = process
        self._foreground = foreground
        self._has_signals = False

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Start the one command that we run, with our own standard streams."""
        foreground = _is_foreground()
        process = await _launch(command, environment, foreground=foreground)
        child = cls(process, foreground=foreground)
        child._take_signals()
        return child

    @classmethod
    async def start_apart(
        cls, command: Sequence[str], environment: Mapping[str, str], stdin: int
    ) -> Child:
        """Start one of several commands, with a standard input of its own."""
        return cls(await _launch(command, environment, foreground=False, stdin=stdin))

    async def wait(self) -> int:
        """Wait for the command; return its exit code, 128 + n after signal n, as a shell does."""
        code = await self._process.wait()
        if self._has_signals:
            self._give_signals_back()
        return code if code >= 0 else ExitCode.SIGNALLED - code

    def stop(self) -> None:
        """Stop the command and all it started where they are."""
        self._signal_group(signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue what was stopped."""
        self._signal_group(signal.SIGCONT)

    def kill(self) -> None:
        """End at once what is left of the command and all it started."""
        self._signal_group(signal.SIGKILL)

    async def end(self, grace_seconds: float) -> None:
        """End the command and all it started: SIGTERM, and SIGKILL to what is left of it then."""
        self._signal_group(signal.SIGTERM)
        self._signal_group(signal.SIGCONT)  # a stopped process does not see the first
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
                while self._signal_group(None):  # noqa: ASYNC110 - nobody tells of an empty group
                    await asyncio.sleep(_POLL_SECONDS)
        self.kill()
        await self.wait()

    def _signal_group(self, number: signal.Signals | None) -> bool:
        """Signal every process of the group; return whether there was any."""
        try:
            os.killpg(self._process.pid, number or 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # one of them changed its user: the others were reached
            return True
        return True

    def _take_signals(self) -> None:
        self._has_signals = True
        loop = asyncio.get_running_loop()
        for number in ENDING:
            loop.add_signal_handler(number, self._signal_group, number)
        for number in _TO_THE_COMMAND:
            loop.add_signal_handler(number, self._signal_command, number)
        if self._foreground:
            # Whoever is in the background is stopped for changing the foreground; not we.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            loop.add_signal_handler(signal.SIGCHLD, self._stop_with_it)

    def _give_signals_back(self) -> None:
        self._has_signals = False
        loop = asyncio.get_running_loop()
        for number in (*ENDING, *_TO_THE_COMMAND):
            loop.remove_signal_handler(number)
        if self._foreground:
            loop.remove_signal_handler(signal.SIGCHLD)
            with contextlib.suppress(OSError):
                os.tcsetpgrp(_TERMINAL, os.getpgrp())
            signal.signal(signal.SIGTTOU, signal.SIG_DFL)
            self._foreground = False

    def _signal_command(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _stop_with_it(self) -> None:
        """Pass a stop (Ctrl-Z) on to the shell that started us, and its `fg` to the command."""
        with contextlib.suppress(ChildProcessError, OSError):
            if os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOHANG) is None:
                return
            os.tcsetpgrp(_TERMINAL, os.getpgrp())
            os.kill(0, signal.SIGTSTP)  # returns when somebody continues us
            if _is_foreground():
                os.tcsetpgrp(_TERMINAL, self._process.pid)
            self._signal_group(signal.SIGCONT)


async def _launch(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    foreground: bool,
    stdin: int | None = None,
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        # Isolated and without site packages: it is there only until it becomes the command.
        "-I",
        "-S",
        str(_LAUNCHER),
        str(os.getpid()),
        "foreground" if foreground else "background",
        *command,
        env=dict(environment),
        process_group=0,
        stdin=stdin,
    )


def _is_foreground() -> bool:
    try:
        return os.isatty(_TERMINAL) and os.tcgetpgrp(_TERMINAL) == os.getpgrp()
    except OSError:
        return False
