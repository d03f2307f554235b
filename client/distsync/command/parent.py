"""Processes that must not outlive the one that started them.

Linux tells a process when its parent dies (prctl PR_SET_PDEATHSIG); the request survives `exec` and
holds for kill -9 of the parent, where no handler of the parent could run. The parent may be gone
before the request is made, so it is looked at once more afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_NOT_EXECUTABLE = 126
_NOT_FOUND = 127


def die_with_parent(parent_pid: int) -> None:
    """Make the kernel kill this process when its parent ends; exit now if it ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(128 + signal.SIGKILL)


def _take_foreground() -> None:
    """Take the terminal for our own process group, which is new and so in the background."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # no terminal any more: nothing to take
        os.tcsetpgrp(0, os.getpgrp())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)


def main() -> None:
    """Run `parent.py PARENT_PID foreground|background COMMAND ...`: become a command that dies
    with its parent.

    A process of its own between fork and exec, because Python code may not run safely there in a
    process with threads. It imports nothing of this package, so it starts in milliseconds.
    """
    parent_pid, ground, *command = sys.argv[1:]
    die_with_parent(int(parent_pid))
    if ground == "foreground":
        _take_foreground()
    # The interpreter ignores or handles these, and an ignored signal stays ignored over exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvp(command[0], command)  # noqa: S606 - running a command is what it is for
    except FileNotFoundError:
        sys.stderr.write(f"distsync: {command[0]}: command not found\n")
        sys.exit(_NOT_FOUND)
    except OSError as error:
        sys.stderr.write(f"distsync: {command[0]}: {error.strerror}\n")
        sys.exit(_NOT_EXECUTABLE)


if __name__ == "__main__":
    main()
