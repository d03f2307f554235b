"""When a cluster is ready, by what each of its nodes says of itself.

It is when its members know one leader and each serves its part of one and the same ring. A ring
that still grows moves keys from node to node, and calls of the cache wait for that or fail. A node
serves as the process that it is: the place of the one that ran before it does not count. A member
that was removed takes no part, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from distsync.models import ClusterStatus


def what_is_missing(said: Mapping[str, ClusterStatus | None]) -> str | None:
    """Return what the cluster waits for, None when it is ready; None of `said`: no answer."""
    members: dict[str, ClusterStatus] = {}
    for name, status in said.items():
        if status is None:
            return f"{name} does not answer"
        if status.state != "removed":
            members[name] = status
    for name, status in members.items():
        if status.state != "member":
            return f"{name} does not belong to the cluster yet (state: {status.state})"
        if status.leader is None:
            return f"{name} knows no leader"
        if not status.ready:
            return f"{name} is not ready"
    if not members:
        return "every node was removed from its cluster"
    if len({status.leader for status in members.values()}) > 1:
        return "the nodes do not agree yet who leads"
    for name, status in members.items():
        if not status.serving:
            return f"{name} does not serve its part of the ring"
    if len({status.ring_epoch for status in members.values()}) > 1:
        return "the nodes do not know the same ring yet"
    return None
