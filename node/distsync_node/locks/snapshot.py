"""The state as one msgpack value, and back.

Only items and counters are encoded; queues, indexes and heaps are built anew. The hash of the state
is stored with it and compared after decoding, so a snapshot that was damaged, or that this version
reads differently from the one that wrote it, stops the node instead of splitting the group.
"""

from __future__ import annotations

import msgspec

from distsync_node.errors import InvariantViolation
from distsync_node.locks.records import (
    Counters,
    FinishedRequest,
    HeldGrant,
    LockLimit,
    SessionLease,
    WaitingRequest,
)
from distsync_node.locks.state import LockState

FORMAT = 1


class _Image(msgspec.Struct, frozen=True, array_like=True):
    format: int
    state_hash: int
    counters: Counters
    limits: list[LockLimit]
    sessions: list[SessionLease]
    grants: list[HeldGrant]  # of one lock: by token
    waiting: list[WaitingRequest]  # by sequence
    finished: list[FinishedRequest]  # by sequence


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Image)


def encode_state(state: LockState) -> bytes:
    """Encode a state."""
    grants: list[HeldGrant] = []
    limits: list[LockLimit] = []
    for lock in state.locks.values():
        if lock.exclusive is not None:
            grants.append(lock.exclusive)
        elif lock.shared is not None:
            grants.extend(lock.shared.values())
        if lock.limit >= 0:
            limits.append(LockLimit(lock.name, lock.limit))
    image = _Image(
        format=FORMAT,
        state_hash=state.hash.value(state.counters()),
        counters=state.counters(),
        limits=limits,
        sessions=[session.lease for session in state.sessions.values()],
        grants=grants,
        waiting=waiting_requests(state),
        finished=[end for end in state.finished if state.requests.get(end.key) is end],
    )
    return _encoder.encode(image)


def waiting_requests(state: LockState) -> list[WaitingRequest]:
    """Return all waiting requests, with their present attempts, by sequence."""
    entered = [one for waits in state.waits_of.values() for one in waits.values()]
    current = [found for one in entered if (found := state.find_waiting(one)) is not None]
    return sorted(current, key=lambda request: request.sequence)


def decode_state(data: bytes) -> LockState:
    """Build a state from its encoding."""
    try:
        image = _decoder.decode(data)
        if image.format != FORMAT:
            raise InvariantViolation(f"lock snapshot has format {image.format}, not {FORMAT}")
        state = _build(image)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError) as error:
        raise InvariantViolation(f"lock snapshot cannot be read: {error}") from error
    if state.hash.value(state.counters()) != image.state_hash:
        raise InvariantViolation("lock snapshot does not hold the state it claims to hold")
    return state


def _build(image: _Image) -> LockState:
    state = LockState()
    state.token = image.counters.token
    state.sequence = image.counters.sequence
    state.stamp_ms = image.counters.stamp_ms
    for fixed in image.limits:
        state.fix_limit(state.lock_for(fixed.name), fixed.limit)
    for lease in image.sessions:
        state.add_session(lease)
    for end in image.finished:
        state.restore_finished(end)
    _restore_grants(state, image.grants)
    for request in image.waiting:
        state.add_waiting(request)
    state.changes.clear()
    return state


def _restore_grants(state: LockState, grants: list[HeldGrant]) -> None:
    requests = state.requests
    several = []
    for grant in grants:
        state.add_grant(state.lock_for(grant.name), grant)
        if grant.key is not None:
            known = requests.setdefault(grant.key, grant)
            if known is not grant:
                earlier = known if isinstance(known, tuple) else (known,)
                requests[grant.key] = (*earlier, grant)
                several.append(grant.key)
    for key in several:
        record = requests[key]
        if isinstance(record, tuple):
            # The tokens of one request follow the order of its names.
            requests[key] = tuple(sorted(record, key=lambda grant: grant.token))
