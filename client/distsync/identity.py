"""Who a client is to the cluster, and the ids it gives its owners and requests.

A request is remembered by the cluster under (client id, request id), and an owner is a node of its
wait-for graph, so neither may ever come twice. They are random in their parts that count, never
reused, and made anew in a process that was forked, which would otherwise go on with the parent's.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import socket

__all__ = ["Identity", "new_request_id"]

_LONGEST_NAME = 48


class Identity:
    """The id of one client, in this process."""

    __slots__ = ("_id", "_name", "_owners", "_pid")

    def __init__(self, name: str | None = None) -> None:
        """`name` tells a person who it is; by default the host's."""
        readable = re.sub(r"[^A-Za-z0-9._-]", "-", name or socket.gethostname())
        self._name = readable[:_LONGEST_NAME]
        self._renew()

    @property
    def client_id(self) -> str:
        """The id of the client; another one after a fork."""
        if self._pid != os.getpid():
            self._renew()
        return self._id

    def new_owner(self) -> str:
        """Return an owner that nobody is yet."""
        client_id = self.client_id
        return f"{client_id}/{next(self._owners)}"

    def _renew(self) -> None:
        self._pid = os.getpid()
        self._id = f"{self._name}-{self._pid}-{secrets.token_hex(6)}"
        self._owners = itertools.count(1)


def new_request_id() -> str:
    """Return an id for one request."""
    return f"{_prefix}-{next(_numbers):x}"


def _renew_prefix() -> None:
    global _prefix  # noqa: PLW0603 - one per process
    _prefix = secrets.token_hex(8)


_prefix = ""
_numbers = itertools.count(1)
_renew_prefix()
os.register_at_fork(after_in_child=_renew_prefix)
