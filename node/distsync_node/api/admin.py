"""The administrator's and the operator's calls, on the peer port behind the shared secret."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from urllib.parse import parse_qs

import msgspec
from msgspec.json import Decoder

from distsync_node.api import ingress
from distsync_node.api.call import Bodies, Call, field_error
from distsync_node.api.cluster import configuration_response
from distsync_node.api.locks import done, encode
from distsync_node.api.options import ApiOptions
from distsync_node.api.routes import decoded_segment
from distsync_node.api.schemas import (
    AddMemberRequest,
    ArchiveResponse,
    BootstrapMember,
    BootstrapRequest,
    ChangeMemberRequest,
    ForceReleaseRequest,
    IdentityResponse,
    MemberIdText,
    RaisedResponse,
    RaiseTokensRequest,
    ReleasedResponse,
    TransferRequest,
    TransferResponse,
)
from distsync_node.errors import BadRequest, DistSyncError, Unavailable
from distsync_node.locks.commands import FencingToken, RaiseTokens
from distsync_node.raft.types import Configuration, LogIndex, Member, MemberId
from distsync_node.services.interface import Node

_logger = logging.getLogger("distsync.admin")

_Change = Callable[[MemberId, LogIndex | None], Awaitable[Configuration]]


class AdminEndpoints:
    """Bootstrap, membership, transfer of leadership, forced release, higher tokens."""

    def __init__(
        self, node: Node, options: ApiOptions, bodies: Bodies, *, peer_url: str, client_url: str
    ) -> None:
        self._node = node
        self._timeout_ms = options.command_timeout_ms
        self._bodies = bodies
        self._peer_url = peer_url
        self._client_url = client_url
        self._bootstrap = Decoder(BootstrapRequest)
        self._add = Decoder(AddMemberRequest)
        self._change = Decoder(ChangeMemberRequest)
        self._transfer = Decoder(TransferRequest)
        self._force_release = Decoder(ForceReleaseRequest)
        self._raise_tokens = Decoder(RaiseTokensRequest)

    async def identity(self, _call: Call) -> bytes:
        """GET /cluster/identity"""
        status = self._node.status()
        if not status.member_id:
            # Not known yet is not empty: who took it for that could create a second cluster.
            raise Unavailable("this node is still reading its data directory")
        configuration = status.configuration
        return encode(
            IdentityResponse(
                member_id=status.member_id,
                name=status.node,
                state=status.state,
                cluster_id=status.cluster_id,
                config_index=configuration.index,
                members=[
                    BootstrapMember(
                        id=member.id,
                        name=member.name,
                        peer_url=member.peer_url,
                        client_url=member.client_url,
                    )
                    for member in configuration.members
                ],
                leader=status.leader.name if status.leader is not None else None,
                draining=status.draining,
                peer_url=self._peer_url,
                client_url=self._client_url,
            )
        )

    async def bootstrap(self, call: Call) -> bytes:
        """POST /cluster/bootstrap"""
        request = await self._bodies.read(call, self._bootstrap)
        members = tuple(
            _member(member, f"members[{position}]")
            for position, member in enumerate(request.members)
        )
        for what in ("id", "name", "peer_url"):
            if len({getattr(member, what) for member in members}) != len(members):
                raise BadRequest(f"members: two have the same {what}", field="members")
        with _Logged(call, "bootstrap", cluster_id=request.cluster_id):
            await self._node.bootstrap(request.cluster_id, members)
        return await self.identity(call)

    async def add_member(self, call: Call) -> bytes:
        """POST /cluster/members"""
        request = await self._bodies.read(call, self._add)
        member = _member(request, "")
        with _Logged(call, "add_member", member=request.id, name=request.name):
            configuration = await self._node.add_member(
                member, _index(request.expected_config_index)
            )
        return configuration_response(self._node.status(), configuration)

    async def remove_member(self, call: Call) -> bytes:
        """DELETE /cluster/members/{id}?expected_config_index="""
        return await self._change_member(
            call, "remove_member", self._node.remove_member, _expected_index_of_query(call)
        )

    async def promote_member(self, call: Call) -> bytes:
        """POST /cluster/members/{id}/promote"""
        expected = await self._expected_index_of_body(call)
        return await self._change_member(
            call, "promote_member", self._node.promote_member, expected
        )

    async def demote_member(self, call: Call) -> bytes:
        """POST /cluster/members/{id}/demote"""
        expected = await self._expected_index_of_body(call)
        return await self._change_member(call, "demote_member", self._node.demote_member, expected)

    async def transfer(self, call: Call) -> bytes:
        """POST /cluster/transfer"""
        request = await self._bodies.read_optional(call, self._transfer)
        target = None if request.target is None else MemberId(request.target)
        with _Logged(call, "transfer", target=request.target):
            leader = await self._node.transfer_leadership(target)
        member = self._node.status().configuration.member(leader)
        return encode(
            TransferResponse(leader=member.name if member is not None else "", member_id=leader)
        )

    async def drain(self, call: Call) -> bytes:
        """POST /cluster/drain"""
        with _Logged(call, "drain"):
            await self._node.drain()
        return await self.identity(call)

    async def archive(self, call: Call) -> bytes:
        """POST /cluster/archive"""
        with _Logged(call, "archive"):
            path = await self._node.archive()
        return encode(ArchiveResponse(archived_to=path))

    async def force_release(self, call: Call) -> bytes:
        """POST /lock/force_release"""
        request = await self._bodies.read(call, self._force_release)
        command = ingress.force_release(call, request)
        with _Logged(
            call, "force_release", lock=request.name, owner=request.owner, token=request.token
        ):
            reply = await self._node.submit(command, timeout_ms=self._timeout_ms)
            done(reply.outcome)
        return encode(ReleasedResponse())

    async def raise_tokens(self, call: Call) -> bytes:
        """POST /lock/raise_tokens"""
        request = await self._bodies.read(call, self._raise_tokens)
        command = RaiseTokens(above=FencingToken(request.above))
        with _Logged(call, "raise_tokens", above=request.above):
            reply = await self._node.submit(command, timeout_ms=self._timeout_ms)
            done(reply.outcome)
        return encode(RaisedResponse(above=request.above))

    async def _expected_index_of_body(self, call: Call) -> LogIndex | None:
        request = await self._bodies.read_optional(call, self._change)
        return _index(request.expected_config_index)

    async def _change_member(
        self, call: Call, action: str, change: _Change, expected: LogIndex | None
    ) -> bytes:
        member_id = _member_id(call)
        with _Logged(call, action, member=member_id):
            configuration = await change(member_id, expected)
        return configuration_response(self._node.status(), configuration)


class _Logged:
    """Leaves one line in the log for what an administrator did, and how it ended."""

    def __init__(self, call: Call, action: str, **fields: object) -> None:
        client = call.scope.get("client") or ("",)
        self._fields: dict[str, object] = {
            "action": action,
            **fields,
            "from": client[0],
            "client": call.client,
        }

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            result = "done"
        elif isinstance(error, DistSyncError):
            result = error.code
        else:
            result = type(error).__name__
        _logger.warning(
            "administrator: %s: %s",
            self._fields["action"],
            result,
            extra={"fields": {**self._fields, "result": result}},
        )


def _index(index: int | None) -> LogIndex | None:
    return None if index is None else LogIndex(index)


def _member_id(call: Call) -> MemberId:
    text = decoded_segment(call, "id")
    try:
        return MemberId(msgspec.convert(text, MemberIdText))
    except msgspec.ValidationError as error:
        raise BadRequest(f"id: {error}", field="id") from None


def _expected_index_of_query(call: Call) -> LogIndex | None:
    field = "expected_config_index"
    query = parse_qs(call.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    unknown = next((name for name in query if name != field), None)
    if unknown is not None:
        raise BadRequest(f"query: unknown parameter {unknown!r}", field="query")
    values = query.get(field)
    if values is None:
        return None
    try:
        query_values = msgspec.convert({field: values[0]}, ChangeMemberRequest, strict=False)
    except msgspec.ValidationError as error:
        raise field_error(error) from None
    if len(values) > 1 or query_values.expected_config_index is None:
        raise BadRequest(f"{field}: give one whole number", field=field)
    return LogIndex(query_values.expected_config_index)


def _member(member: BootstrapMember, path: str) -> Member:
    for field in ("id", "name", "peer_url", "client_url"):
        if getattr(member, field).endswith("\n"):  # `$` of a pattern lets one pass
            where = f"{path}.{field}" if path else field
            raise BadRequest(f"{where}: ends with a newline", field=where)
    return Member(
        id=MemberId(member.id),
        name=member.name,
        peer_url=member.peer_url.rstrip("/"),
        client_url=member.client_url.rstrip("/"),
    )
