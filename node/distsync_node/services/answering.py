"""Answers to the calls of other nodes: as the leader, or that this node does not lead.

A call is answered here or refused; it is never passed on, so none can loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import assert_never

from distsync_node.peers.inbound import RespondBytes
from distsync_node.peers.wire import (
    BootstrapCall,
    CallReply,
    CallRequest,
    CommandCall,
    CommandRequest,
    ConfigurationReply,
    IdentityCall,
    IdentityReply,
    MembershipCall,
    OutcomeReply,
    ReadIndexCall,
    ReadIndexReply,
    RejectedReply,
    TransferCall,
    encode,
)
from distsync_node.raft.types import LogIndex, Member, MemberId
from distsync_node.replica.core import Replica
from distsync_node.replica.types import (
    AdminDone,
    Bootstrap,
    ChangeMembership,
    ReadAt,
    Rejected,
    RejectReason,
    Reply,
    SubmitRead,
    Transfer,
)
from distsync_node.services.runtime import Final, Runtime, boottime_ms

COMMANDS_PATIENCE_MS = 2_500  # less than a sender's connection has


async def answer(
    name: str,
    runtime: Runtime,
    request: CallRequest,
    on_parked: Callable[[int], object] | None = None,
) -> CallReply:
    """Answer another node's call on the node `name`."""
    replica = runtime.replica
    call = request.call
    if isinstance(call, IdentityCall):
        return _identity(name, replica)
    if isinstance(call, BootstrapCall):
        if request.to != replica.member_id:
            return RejectedReply(RejectReason.NOT_LISTED, None)
        return await bootstrap(runtime, call)
    refusal = _refusal(request, replica)
    if refusal is not None:
        return refusal
    match call:
        case CommandCall(command=command):
            final = await runtime.run(command, on_parked=on_parked)
        case ReadIndexCall():
            final = await runtime.ask(lambda ref: SubmitRead(now_ms=boottime_ms(), ref=ref))
        case MembershipCall():
            final = await _change(runtime, call)
        case TransferCall(target=target):
            if not replica.is_ready_leader:
                return RejectedReply(RejectReason.NOT_LEADER, replica.leader)
            runtime.step(Transfer(now_ms=boottime_ms(), target=target))
            return ConfigurationReply(replica.configuration)
        case _:
            assert_never(call)
    return _reply(final, replica)


def answer_commands(
    runtime: Runtime, requests: Sequence[CommandRequest], respond: RespondBytes
) -> None:
    """Run another node's commands and answer when the last of them has an outcome."""
    replica = runtime.replica
    replies: list[CallReply | None] = [_refusal(request, replica) for request in requests]
    taken = [place for place, refusal in enumerate(replies) if refusal is None]
    futures = runtime.run_all(
        [requests[place].command for place in taken],
        deadline_ms=boottime_ms() + COMMANDS_PATIENCE_MS,
    )
    left = len(futures)

    def answer_one(place: int, future: asyncio.Future[Final]) -> None:
        nonlocal left
        replies[place] = _reply(future.result(), replica)
        left -= 1
        if not left:
            respond(encode(replies))

    for place, future in zip(taken, futures, strict=True):
        future.add_done_callback(partial(answer_one, place))
    if not futures:
        respond(encode(replies))


def _refusal(request: CommandRequest | CallRequest, replica: Replica) -> RejectedReply | None:
    """Return why a request is not for this member, or None."""
    if request.to != replica.member_id:
        return RejectedReply(RejectReason.NOT_LISTED, None)
    if request.cluster_id != replica.cluster_id or _is_removed(request.sender, replica):
        return RejectedReply(RejectReason.NOT_LEADER, None)
    return None


def _reply(final: Final, replica: Replica) -> CallReply:
    match final:
        case Reply():
            return OutcomeReply(final.outcome, final.remaining_ms)
        case Rejected():
            return RejectedReply(final.reason, final.leader)
        case ReadAt():
            raft = replica.raft
            return ReadIndexReply(raft.applied_index if raft is not None else LogIndex(0))
        case AdminDone():
            return ConfigurationReply(final.configuration)


def _is_removed(sender: MemberId, replica: Replica) -> bool:
    """Whether another member calls that was removed and does not know it yet."""
    return sender in replica.configuration.removed and sender != replica.member_id


def _identity(name: str, replica: Replica) -> IdentityReply:
    configuration = replica.configuration
    return IdentityReply(
        member=Member(id=replica.member_id, name=name, peer_url=""),
        uninitialised=replica.state == "uninitialised",
        cluster_id=replica.cluster_id or None,
        known_ids=tuple(member.id for member in configuration.members),
        leader=configuration.member(replica.leader) if replica.leader is not None else None,
    )


async def bootstrap(runtime: Runtime, call: BootstrapCall) -> ConfigurationReply | RejectedReply:
    """Create the cluster on this member."""
    final = await runtime.ask(
        lambda ref: Bootstrap(
            now_ms=boottime_ms(), ref=ref, cluster_id=call.cluster_id, members=call.members
        )
    )
    if isinstance(final, AdminDone):
        return ConfigurationReply(final.configuration)
    reason = final.reason if isinstance(final, Rejected) else RejectReason.STOPPED
    return RejectedReply(reason, None)


async def _change(runtime: Runtime, call: MembershipCall) -> Final:
    return await runtime.ask(
        lambda ref: ChangeMembership(
            now_ms=boottime_ms(),
            ref=ref,
            operation=call.operation,
            member=call.member,
            expected_config_index=call.expected_config_index,
        )
    )
