"""Calls of administrators: on the peer port, behind the shared secret, through any node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from distsync.command.calls import (
    ArchiveAnswer,
    Caller,
    Identity,
    MembershipAnswer,
    TransferAnswer,
    read_secret,
)
from distsync.command.failures import Failure
from distsync.command.options import Options, parse_urls
from distsync.errors import DistSyncError, Unavailable
from distsync.models import ClusterStatus, Member, Nothing
from distsync.paths import member_path

_SECRET_OF_UP = Path(".distsync/secret")
_DEADLINE_SECONDS = 15.0

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Answer = TypeVar("_Answer")


def admin_options(function: _Function) -> _Function:
    """Add `--secret-file` and `--peer-url`."""
    secret_file = click.option(
        "--secret-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="DISTSYNC_SECRET_FILE",
        default=lambda: _SECRET_OF_UP if _SECRET_OF_UP.exists() else None,
        help="File with the secret of the cluster  [env: DISTSYNC_SECRET_FILE; "
        f"default: {_SECRET_OF_UP}, if it is there].",
    )
    peer_url = click.option(
        "--peer-url",
        metavar="URL[,URL...]",
        envvar="DISTSYNC_ADMIN_URL",
        help="Peer URLs of any nodes  [env: DISTSYNC_ADMIN_URL; default: asked at --url].",
    )
    return secret_file(peer_url(function))


async def leader_status(caller: Caller, urls: Iterable[str]) -> ClusterStatus:
    """Return the leader's view of the cluster, or another's when there is no leader.

    Raises:
        Unavailable: no node answers.
    """
    first: DistSyncError | None = None
    for url in urls:
        try:
            status = await caller.get(f"{url}/cluster/status", ClusterStatus)
            if status.leader_url and status.role != "leader":
                return await caller.get(f"{status.leader_url}/cluster/status", ClusterStatus)
            return status
        except Unavailable as error:
            first = first or error
    raise first or Unavailable("no node answers")


class Admin:
    """The administrator's side of a cluster; an async context manager."""

    def __init__(self, options: Options, secret_file: Path | None, peer_url: str | None) -> None:
        """Raises Failure when the secret is missing, UsageError for a bad URL."""
        self._client_urls = options.urls
        try:
            self._peer_urls = parse_urls(peer_url) if peer_url else ()
        except ValueError as error:
            raise click.UsageError(f"--peer-url: {error}") from None
        self._caller = Caller(secret=read_secret(secret_file), deadline_seconds=_DEADLINE_SECONDS)

    async def __aenter__(self) -> Admin:
        await self._caller.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._caller.__aexit__(*exc)

    async def identity(self, peer_url: str) -> Identity:
        """Ask who listens at a peer URL."""
        return await self._caller.get(f"{peer_url}/cluster/identity", Identity)

    async def status(self) -> ClusterStatus:
        """Return the leader's view of the cluster, or another's when there is no leader."""
        return await leader_status(self._caller, self._client_urls)

    async def member(self, name_or_id: str) -> Member:
        """Find a member.

        Raises:
            Failure: there is none of that name or id, or several of that name.
        """
        members = (await self.status()).members
        found = [m for m in members if m.id == name_or_id]
        found = found or [m for m in members if m.name == name_or_id]
        match found:
            case [member]:
                return member
            case []:
                names = ", ".join(sorted(m.name for m in members)) or "none"
                raise Failure(f"{name_or_id} is not a member (members: {names})", code="not_found")
            case _:
                ids = ", ".join(m.id for m in found)
                raise Failure(f"several members are called {name_or_id}; name the id: {ids}")

    async def add(self, who: Identity) -> MembershipAnswer:
        """Add a node that listens already as a learner."""
        body = {
            "id": who.member_id,
            "name": who.name,
            "peer_url": who.peer_url,
            "client_url": who.client_url,
        }
        return await self._post("/cluster/members", body, MembershipAnswer)

    async def change(self, member_id: str, verb: str) -> MembershipAnswer:
        """Promote or demote a member."""
        return await self._post(f"{member_path(member_id)}/{verb}", {}, MembershipAnswer)

    async def remove(self, member_id: str) -> MembershipAnswer:
        """Remove a member for good."""
        path = member_path(member_id)
        return await self._through_any(
            lambda url: self._caller.delete(f"{url}{path}", MembershipAnswer)
        )

    async def transfer(self, target: str | None) -> TransferAnswer:
        """Hand leadership over, to a member id or to the most advanced voter."""
        return await self._post("/cluster/transfer", {"target": target}, TransferAnswer)

    async def archive(self, peer_url: str) -> ArchiveAnswer:
        """Make the removed node at this peer URL move its data aside."""
        return await self._caller.post(f"{peer_url}/cluster/archive", {}, ArchiveAnswer)

    async def force_release(self, name: str, owner: str, token: int, request_id: str) -> None:
        """End a grant, or every grant of a lock."""
        body = {"name": name, "owner": owner, "token": token, "request_id": request_id}
        await self._post("/lock/force_release", body, Nothing)

    async def raise_tokens(self, above: int) -> None:
        """Have only fencing tokens above that one issued."""
        await self._post("/lock/raise_tokens", {"above": above}, Nothing)

    async def _post(self, path: str, body: object, answer: type[_Answer]) -> _Answer:
        return await self._through_any(lambda url: self._caller.post(f"{url}{path}", body, answer))

    async def _through_any(self, call: Callable[[str], Awaitable[_Answer]]) -> _Answer:
        """Make a call at the first node that takes it; one that refused it did nothing."""
        first: DistSyncError | None = None
        for url in self._peer_urls or await self._discovered():
            try:
                return await call(url)
            except Unavailable as error:
                first = first or error
        raise first or Unavailable("no node of the cluster is known")

    async def _discovered(self) -> tuple[str, ...]:
        status = await self.status()
        members = sorted(status.members, key=lambda m: m.role != "leader")
        return tuple(m.peer_url for m in members if m.peer_url)
