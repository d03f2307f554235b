"""One HTTP call to one named node: its own status, and what administrators ask on the peer port.

The client library talks to a cluster, whichever node answers; these calls are about a node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import aiohttp
import msgspec

from distsync.command.failures import ExitCode, Failure
from distsync.connections import NO_CONNECTION, limits_of_a_call, why_not_connected
from distsync.errors import DistSyncError, OutcomeUnknown, Unavailable, error_from_problem
from distsync.models import Member, Problem

_Answer = TypeVar("_Answer")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """GET /cluster/identity on the peer port: who listens there."""

    member_id: str
    name: str
    state: str
    cluster_id: str | None = None
    config_index: int = 0
    leader: str | None = None
    draining: bool = False
    peer_url: str = ""
    client_url: str = ""


class MembershipAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What a change of membership answers."""

    config_index: int
    members: list[Member]


class TransferAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The name of the member that leads after a transfer."""

    leader: str


class ArchiveAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where a removed node put its data, on its own disk."""

    archived_to: str


class RingServer(msgspec.Struct, frozen=True, kw_only=True):
    """One node of the ring; `share` is the part of all keys that it owns."""

    name: str
    weight: float = 1.0
    share: float = 0.0
    client_url: str = ""


class Ring(msgspec.Struct, frozen=True, kw_only=True):
    """GET /cluster/ring?key="""

    epoch: int
    virtual_nodes: int
    servers: list[RingServer]
    key: str | None = None
    owner: str | None = None


def read_secret(path: Path | None) -> str:
    """Return the secret that administrators share with the nodes.

    Raises:
        Failure: no file was named, or it cannot be read or is empty.
    """
    if path is None:
        raise Failure(
            "this is an administrator's call: give --secret-file (or DISTSYNC_SECRET_FILE)",
            exit_code=ExitCode.USAGE,
            code="usage",
        )
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise Failure(
            f"cannot read the secret file {path}: {reason}", exit_code=ExitCode.USAGE
        ) from None
    if not secret:
        raise Failure(f"the secret file {path} is empty", exit_code=ExitCode.USAGE)
    return secret


class Caller:
    """Makes calls to nodes by their URLs; an async context manager."""

    def __init__(self, *, secret: str | None = None, deadline_seconds: float = 5.0) -> None:
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self._deadline_seconds = deadline_seconds
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=limits_of_a_call(self._deadline_seconds),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, url: str, answer: type[_Answer]) -> _Answer:
        """GET and decode; raises DistSyncError."""
        return await self._call("GET", url, None, answer)

    async def post(self, url: str, body: object, answer: type[_Answer]) -> _Answer:
        """POST JSON and decode the answer; raises DistSyncError."""
        return await self._call("POST", url, body, answer)

    async def delete(self, url: str, answer: type[_Answer]) -> _Answer:
        """DELETE and decode the answer; raises DistSyncError."""
        return await self._call("DELETE", url, None, answer)

    async def _call(
        self,
        method: Literal["GET", "POST", "DELETE"],
        url: str,
        body: object,
        answer: type[_Answer],
    ) -> _Answer:
        data = None if body is None else msgspec.json.encode(body)
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(method, url, data=data, headers=headers) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unavailable(f"no answer from {url}: {_reason(error)}") from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            failed = Unavailable if method == "GET" else OutcomeUnknown
            raise failed(f"no answer from {url}: {_reason(error)}") from None
        if not 200 <= status < 300:
            raise _refusal(url, status, content)
        try:
            return msgspec.json.decode(content, type=answer)
        except msgspec.MsgspecError:
            raise Unavailable(f"{url} does not answer as a DistSync node does") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return NO_CONNECTION
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, aiohttp.ClientConnectorError):
        return why_not_connected(error)
    return str(error) or type(error).__name__


def _refusal(url: str, status: int, content: bytes) -> DistSyncError:
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return Unavailable(f"{url} answered {status}")
    fields: dict[str, Any] = {
        name: value
        for name in ("request_id", "field", "leader", "cycle", "limit")
        if (value := getattr(problem, name)) is not None
    }
    return error_from_problem(
        status=status,
        code=problem.code,
        detail=problem.detail,
        retriable=problem.retriable,
        fields=fields,
    )
