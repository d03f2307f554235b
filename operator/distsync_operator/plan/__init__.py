"""From what is observed and what is wanted to at most one action: pure.

Guarantees, whenever the operator dies, whatever is repeated and however the wish changes:

- A second cluster is never created: any node that reports one forbids it, and a cluster is
  created only of pods that all said, as themselves, that they belong to none.
- Nothing is stopped, removed or replaced that a quorum needs. What no longer votes may be.
- One change at a time, and none before the one before has arrived: every pass decides anew from
  what is there, never from what an earlier pass meant to do. Status is not read.

Source: design §2, §4, §9; CloudNativePG and the RabbitMQ cluster operator for the order of steps.
"""

from __future__ import annotations

from distsync_operator.plan.planner import plan

__all__ = ["plan"]
