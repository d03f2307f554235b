"""How the command ends when something is wrong: one line on stderr and one of these exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command itself ends with; `lock run` else passes on the code of what it ran."""

    OK = 0
    FAILED = 1  # the cluster refused or could not be reached
    USAGE = 2  # wrong arguments, or a node that cannot start
    NOT_NOW = 75  # `lock run`: not acquired, not started; `queue pop`: no message (EX_TEMPFAIL)
    LOCK_LOST = 76  # `lock run`: the lock was lost and the command was ended
    NOT_EXECUTABLE = 126  # `lock run` and `queue work`: as a shell reports it
    COMMAND_NOT_FOUND = 127  # `lock run` and `queue work`: as a shell reports it
    SIGNALLED = 128  # plus the number of the signal that ended it


class Failure(Exception):
    """An end that was expected to happen to somebody: one line for a person, a code for a script.

    `code` is the API's error code where there is one (`lock_held`, `no_leader`, ...).
    """

    def __init__(
        self, message: str, *, exit_code: int = ExitCode.FAILED, code: str = "failed"
    ) -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.exit_code = int(exit_code)
        self.code = code
