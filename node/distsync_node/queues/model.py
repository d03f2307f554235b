"""The data model of the queues in Redis.

A queue is a fixed set of keys, `dsq:{name}:suffix`. The braces are Redis Cluster's hash tag: they
put all keys of a queue on one node, so that a script may touch them together. The name is
percent-encoded, which leaves no brace, space or control byte in it. There is no key per message and
none per group: what a script touches has to be declared before it knows which message it will find.

    meta          hash   configuration, counters, `sequence` (of messages), `turn` (of groups), and
                         which generations are current
    states        hash   id -> place, size, times, deliveries, receipt token, deadline, group
                         (scripts/lib/state.lua); one for each message that is not a dead letter
    bodies        hash   id -> body, written once
    ready         zset   messages without a group that can be claimed, by place
    grouped       zset   messages of groups that wait; all scores 0, so ordered by member, which is
                         group, a zero byte, sequence in 15 digits, id
    groups        hash   group -> id of its message in flight, '' if none; groups with messages only
    turns         zset   groups whose first message can be claimed, by rank of that and turn
    delayed       zset   by due time: messages without a group; groups (':' and name) whose first
                         message is not due
    in_flight     zset   claimed messages by deadline
    expiries      zset   messages that are not claimed and have a ttl, by its end
    dead          zset   dead letters by time of death
    dead_states   hash   as states
    dead_bodies   hash   as bodies
    requests_0/1  hash   request id -> digest and answer, two generations (lib/requests.lua)
    dedupe_0/1    hash   dedupe id -> until when, message id; two generations (lib/dedupe.lua)
    fences_0/1    hash   lock -> newest fencing token seen; two generations (lib/fences.lua)
    schedules     hash   id -> next time and specification of what is pushed again and again

and, outside all queues, `dsq:queues`, the sorted set of the names of queues, and `dsq:scheduled`,
the names of queues with schedules by the time at which to look at them (`schedules.py`).

Place = (9 - priority) * 2^49 + sequence. It is given at the push and kept for life, so a message
that comes back from a claim or a delay is before those pushed later. Groups:
scripts/lib/groups.lua; who is claimed next: scripts/lib/choose.lua. A message's ids, like its
receipts, are minted by the node that takes the request; a repeated request is answered with the
first ones.

A message's life, each arrow one script:

    push -> ready | delayed | grouped
    delayed -> ready                         pop, sweep: its time has come
    ready | grouped -> in_flight             pop: token and deadline set, deliveries + 1
    in_flight -> gone                        ack
    in_flight -> ready | delayed | grouped   nack; pop, sweep: deadline passed;
                                             unclaim: deliveries - 1
    in_flight -> dead                        the same, but its deliveries are used up
    ready | delayed | grouped -> gone        pop, sweep: ttl; cancel; purge
    dead -> ready | grouped                  redrive, as if pushed now
    dead -> gone                             cancel, purge

Invariants, which `tests/property/queue_checks.py` reads out of Redis after each step, and a
planted bug that breaks each (`tests/property/queue_mutants.py`):

 1. states and bodies have the same ids; none of them is a dead letter. (ack leaves the body)
 2. Each of those ids is in exactly one of ready, delayed, grouped, in_flight. (a pop that leaves
    the message in `ready` gives it to two; one that takes it out of everything loses it)
 3. in_flight holds exactly those with a token, scored by the deadline in their state; a receipt is
    good if its token is that one and Redis' time is before the deadline. (ack that does not
    compare the token, or takes a receipt after its deadline; extend that forgets the score)
 4. deliveries = claims minus unclaims and nacks that spend none. It never exceeds max_deliveries,
    and reaching it without an ack makes a dead letter, never sooner, never later. (off by one;
    unclaim that counts)
 5. A group is in `groups` if and only if it has a message; then it is in exactly one of: `groups`
    under an id, which is in flight; turns; delayed. Of its messages only the first can be claimed.
    (ack that does not settle the group stops it for ever)
 6. ready and turns are scored by what their members' states say. (nack to the end of the order)
 7. expiries holds exactly the waiting messages with a ttl. (put_back that forgets it)
 8. A remembered request answers as the first time and changes nothing. (push, pop, ack run twice)
 9. The token of a lock in fences never falls. (push that does not compare)

What is written with one script is written whole or not at all: Redis runs scripts one by one, and
each decides first and writes then. Where memory is full (`maxmemory`) Redis refuses a script at its
first write if that is of a kind that can grow the data set, and lets all later writes pass. So push
and redrive begin with HSET and are refused whole; pop, ack, nack, extend, unclaim, cancel, purge,
sweep and configure begin with a removal and go through, and so the queue can be drained. (In Redis
7 this could be said by flags in a `#!lua` line, which 6.2 does not understand.)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import quote

from distsync_node.redis_link.scripts import Script

REGISTRY_KEY: Final = b"dsq:queues"
SCHEDULED_KEY: Final = b"dsq:scheduled"


@lru_cache(maxsize=4096)
def encode_name(queue: str) -> str:
    """Return the name as it stands in keys: only letters, digits and `_.-~%`."""
    return quote(queue, safe="")


def key(queue: str, name: str) -> bytes:
    """Return the key `name` of a queue."""
    return f"dsq:{{{encode_name(queue)}}}:{name}".encode()


def keys(queue: str, script: Script) -> list[bytes]:
    """Return the keys that `script` declares, in its order."""
    start = f"dsq:{{{encode_name(queue)}}}:"
    return [f"{start}{name}".encode() for name in script.key_names]
