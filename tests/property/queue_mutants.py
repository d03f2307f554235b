"""Bugs planted in the scripts of the queues, each of which the comparison must find.

cd tests && python -m property.queue_mutants            all of them
cd tests && python -m property.queue_mutants fence      those whose name contains a word
"""

from __future__ import annotations

import contextlib
import sys
from random import Random

from distsync_node.redis_link.scripts import SourceReader
from property.queue_commands import WEIGHTS, Commands
from property.queue_comparison import Comparison
from property.script_mutants import Mutant, Trial, take_steps
from queue_harness import read_with_test_clock
from redis_server import RedisServer

WALKS = 60
STEPS = 120


REPEAT = "if first_digest then return {first_digest == digest and first_answer or REUSED} end"

MUTANTS = (
    Mutant(
        "a receipt of an earlier claim is taken",
        "lib/state.lua",
        "s.token ~= '' and s.token == token and now",
        "s.token ~= '' and now",
    ),
    Mutant(
        "a receipt is taken after its deadline, until it is swept",
        "lib/state.lua",
        " and s.token == token and now < s.deadline",
        " and s.token == token",
    ),
    Mutant(
        "a receipt is taken in the millisecond of its deadline",
        "lib/state.lua",
        "and now < s.deadline",
        "and now <= s.deadline",
    ),
    Mutant(
        "pop takes messages out for good",
        "pop.lua",
        "call('ZADD', k.in_flight, unpack(claim_args))",
        "",
    ),
    Mutant(
        "pop leaves messages where another can claim them",
        "pop.lua",
        "if #singles > 0 then call('ZREM', k.ready, unpack(singles)) end",
        "",
    ),
    Mutant("unclaim spends a delivery", "unclaim.lua", "s.deliveries = s.deliveries - 1", ""),
    Mutant(
        "a pop whose claims were given back is remembered",
        "unclaim.lua",
        "forget_request(pop_request_id)",
        "",
    ),
    Mutant(
        "an attempt gives back what a later one was answered with",
        "unclaim.lua",
        "token ~= attempt or last_attempt ~= attempt then",
        "token ~= attempt then",
    ),
    Mutant(
        "an attempt gives back what an earlier one claimed",
        "unclaim.lua",
        "token ~= attempt or last_attempt ~= attempt then",
        "last_attempt ~= attempt then",
    ),
    Mutant(
        "a later attempt does not take over",
        "pop.lua",
        "remember(request_id, digest, first_attempt, first_ids, attempt)",
        "remember(request_id, digest, first_attempt, first_ids, first_attempt)",
    ),
    Mutant(
        "a delivery that was not begun is counted",
        "nack.lua",
        "if not spend then s.deliveries = s.deliveries - 1 end",
        "",
    ),
    Mutant(
        "push is not idempotent",
        "push.lua",
        "if first_digest then",
        "if false then",
    ),
    Mutant(
        "pop is not idempotent",
        "pop.lua",
        "remember(request_id, digest, attempt, ids, attempt)",
        "",
    ),
    Mutant("ack is not idempotent", "ack.lua", REPEAT, ""),
    Mutant("nack is not idempotent", "nack.lua", REPEAT, ""),
    Mutant("extend is not idempotent", "extend.lua", REPEAT, ""),
    Mutant(
        "a repeated push gets ids of its own",
        "push.lua",
        "cmsgpack.pack({'repeated', first_push_id,",
        "cmsgpack.pack({'repeated', push_id,",
    ),
    Mutant(
        "a used request id is not compared",
        "cancel.lua",
        "first_digest == digest and",
        "first_digest and",
    ),
    Mutant(
        "one delivery too many before the dead letters",
        "lib/state.lua",
        "s.deliveries >= max_deliveries",
        "s.deliveries > max_deliveries",
    ),
    Mutant(
        "one delivery too few before the dead letters",
        "lib/state.lua",
        "s.deliveries >= max_deliveries",
        "s.deliveries >= max_deliveries - 1",
    ),
    Mutant(
        "claims that ended in time-outs never become dead letters",
        "lib/promote.lua",
        "    ending().put_back(id, s, 0)",
        "    s.deliveries = 0 ending().put_back(id, s, 0)",
    ),
    Mutant(
        "sweep takes claims back before their deadline",
        "lib/promote.lua",
        "k.in_flight, '-inf', until_now,",
        "k.in_flight, '-inf', '+inf',",
    ),
    Mutant(
        "extend forgets the deadline that is swept by",
        "extend.lua",
        "claim_args[2 * i - 1], claim_args[2 * i] = s.deadline, id",
        "claim_args[2 * i - 1], claim_args[2 * i] = now, id",
    ),
    Mutant(
        "delays end early",
        "lib/promote.lua",
        "k.delayed, '-inf', until_now,",
        "k.delayed, '-inf', string.format('%.0f', now + 20),",
    ),
    Mutant(
        "an old token passes the fence",
        "lib/fences.lua",
        "if token < newest then return 'fenced', newest end",
        "if token < newest then return 'pass' end",
    ),
    Mutant(
        "a token raises the fence unverified",
        "lib/fences.lua",
        "if checked == mark then",
        "if checked then",
    ),
    Mutant("the fence is never raised", "push.lua", "fences().raise(lock, token)", ""),
    Mutant(
        "the dedupe window has no end",
        "lib/dedupe.lua",
        "if now < expires_at then return id end",
        "return id",
    ),
    Mutant(
        "dedupe ids within one push are not compared",
        "push.lua",
        "if dedupe_id ~= '' then deduped[dedupe_id] = ids[i] end",
        "if dedupe_id ~= '' and i == #items then deduped[dedupe_id] = ids[i] end",
    ),
    Mutant(
        "a group stops after its first message",
        "ack.lua",
        "s.group ~= '' and groups().settle(s.group)",
        "false",
    ),
    Mutant(
        "a group has several messages in flight",
        "pop.lua",
        "if #claimed_groups > 0 then call('ZREM', k.turns, unpack(claimed_groups)) end",
        "",
    ),
    Mutant(
        "messages without a group starve groups",
        "lib/choose.lua",
        "singles_turn, result.singles_turn = turn, turn",
        "",
    ),
    Mutant(
        "a group that was served keeps its turn",
        "lib/groups.lua",
        "turn = turn or call('HINCRBY', k.meta, 'turn', 1)",
        "turn = turn or 1",
    ),
    Mutant(
        "what comes back goes to the end",
        "lib/ending.lua",
        "call('ZADD', k.ready, s.place, id)",
        "call('ZADD', k.ready, s.place + 1000, id)",
    ),
    Mutant(
        "what comes back lives for ever",
        "lib/ending.lua",
        "if s.expires_at > 0 then call('ZADD', k.expiries, s.expires_at, id) end",
        "",
    ),
    Mutant(
        "an expired message is delivered",
        "lib/state.lua",
        "s.expires_at > 0 and s.expires_at <= now",
        "false",
    ),
    Mutant(
        "the ttl of the queue is not applied",
        "push.lua",
        "own_ttl_ms > 0 and own_ttl_ms or ttl_ms",
        "own_ttl_ms",
    ),
    Mutant("low priority first", "lib/state.lua", "return (9 - priority)", "return priority"),
    Mutant(
        "a batch may pass max_length",
        "push.lua",
        "if length + #fresh > max_length",
        "if length + 1 > max_length",
    ),
    Mutant("a paused queue delivers", "pop.lua", "if paused == 1", "if paused == 2"),
    Mutant("ack leaves the body", "ack.lua", "call('HDEL', k.bodies, unpack(good_ids))", ""),
    Mutant(
        "a claimed message is cancelled",
        "cancel.lua",
        "if now < s.deadline then return {cmsgpack.pack({'in_flight'})} end",
        "",
    ),
    Mutant("purge forgets the turns of groups", "purge.lua", "k.turns, k.grouped,", "k.grouped,"),
    Mutant(
        "redrive keeps the deliveries",
        "redrive.lua",
        "s.deliveries, s.due_at = now, 0, 0",
        "s.due_at = now, 0",
    ),
    Mutant(
        "the memory of requests drops the newest",
        "lib/requests.lua",
        "call('UNLINK', other)",
        "call('UNLINK', k.requests_0, k.requests_1)",
    ),
)


def walk(server: RedisServer, read: SourceReader, seed: int) -> None:
    """Take random steps."""
    comparison = Comparison(server, read=read, nodes=1)
    try:
        with contextlib.redirect_stderr(None):
            take_steps(lambda pick: Commands(comparison, pick), WEIGHTS, Random(seed), STEPS)
    finally:
        comparison.close()


TRIAL = Trial(mutants=MUTANTS, read=read_with_test_clock, walk=walk, walks=WALKS, walks_without=10)

if __name__ == "__main__":
    sys.exit(min(1, TRIAL.main(sys.argv[1:])))
