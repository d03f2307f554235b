"""What nodes say to each other beside consensus: calls that only a leader can answer.

A call names the cluster, who makes it and whom it is meant for, as every peer message does. The
receiver answers it itself or says that it is not the leader; it never passes it on, so no call can
loop.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from distsync_node.locks.commands import LockCommand, Outcome
from distsync_node.raft.types import ConfigOperation, Configuration, LogIndex, Member, MemberId
from distsync_node.replica.types import Answer, Envelope, RejectReason

MESSAGES_PATH = "/raft/messages"
CALL_PATH = "/raft/call"
COMMAND_PATH = "/lock/internal_command"
COMMANDS_PATH = "/lock/internal_commands"
ATTEMPT_HEADER = "distsync-attempt"
SENDER_HEADER = "distsync-from"
MAX_BODY_BYTES = 32 << 20


class _Struct(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    pass


class CommandCall(_Struct, frozen=True):
    """Run a lock command."""

    command: LockCommand


class ReadIndexCall(_Struct, frozen=True):
    """Confirm a read index."""


class MembershipCall(_Struct, frozen=True):
    """Change the membership."""

    operation: ConfigOperation
    member: Member
    expected_config_index: LogIndex | None


class TransferCall(_Struct, frozen=True):
    """Hand leadership over."""

    target: MemberId | None


class IdentityCall(_Struct, frozen=True):
    """Who are you? Answered whoever it is meant for."""


class BootstrapCall(_Struct, frozen=True):
    """Create the cluster on this member (idempotent)."""

    cluster_id: str
    members: tuple[Member, ...]


Call: TypeAlias = (
    CommandCall | ReadIndexCall | MembershipCall | TransferCall | IdentityCall | BootstrapCall
)


class CallRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A call, who makes it and whom it is meant for."""

    cluster_id: str
    sender: MemberId
    to: MemberId
    call: Call


class CommandRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Run a lock command that does not wait. Many share a request to COMMANDS_PATH."""

    cluster_id: str
    sender: MemberId
    to: MemberId
    command: LockCommand


class OutcomeReply(_Struct, frozen=True):
    """The final outcome of a command and what is left of its lease."""

    outcome: Outcome
    remaining_ms: int


class ReadIndexReply(_Struct, frozen=True):
    """A read is linearizable at this index."""

    index: LogIndex


class ConfigurationReply(_Struct, frozen=True):
    """The configuration after the change."""

    configuration: Configuration


class IdentityReply(_Struct, frozen=True):
    """Who answers: `known_ids` are the members of its cluster, `leader` whom it follows."""

    member: Member
    uninitialised: bool
    cluster_id: str | None
    known_ids: tuple[MemberId, ...]
    leader: Member | None


class RejectedReply(_Struct, frozen=True):
    """Nothing came of it here."""

    reason: RejectReason
    leader: MemberId | None


CallReply: TypeAlias = (
    OutcomeReply | ReadIndexReply | ConfigurationReply | IdentityReply | RejectedReply
)

encode = msgspec.msgpack.Encoder().encode
decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
decode_call = msgspec.msgpack.Decoder(CallRequest).decode
decode_commands = msgspec.msgpack.Decoder(tuple[CommandRequest, ...]).decode
decode_reply: msgspec.msgpack.Decoder[CallReply] = msgspec.msgpack.Decoder(CallReply)
decode_replies = msgspec.msgpack.Decoder(tuple[CallReply, ...]).decode
