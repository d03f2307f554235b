"""Bugs planted in the scripts of the cache, each of which the comparison must find.

cd tests && python -m property.cache_script_mutants            all of them
cd tests && python -m property.cache_script_mutants mark       those with a word in their name
"""

from __future__ import annotations

import sys
from random import Random

from distsync_node.redis_link.scripts import SourceReader
from property.cache_script_comparison import WEIGHTS, Commands, Comparison, read_with_test_clock
from property.script_mutants import Mutant, Trial, take_steps
from redis_server import RedisServer

STEPS = 400
WALKS = 40  # some bugs show only if a key is touched for the first time in a certain way

FLOOR = "if epoch < record.floor then return {'superseded'} end"
NO_VALUE = "if not has_value then call('HDEL', k.record, 'v') end"
VERSION = "call('HSET', k.record, 'e', text(record.epoch), 'c', text(record.counter), 'l', ARGV[2])"
NEWER = "is_older(record.epoch, record.counter, write[1], write[2])"

MUTANTS = (
    Mutant("an older write-back is taken", "put.lua", NEWER, "true"),
    Mutant(
        "versions are ordered by their counters alone",
        "lib/record.lua",
        "epoch < than_epoch or (epoch == than_epoch and counter < than_counter)",
        "counter < than_counter",
    ),
    Mutant("a home that was superseded writes", "put.lua", FLOOR, ""),
    Mutant(
        "what was forgotten is written all the same",
        "put.lua",
        "if record.floor == 0 then return {'forgotten'} end",
        "",
    ),
    Mutant("a home that was superseded reads", "load.lua", FLOOR, ""),
    Mutant(
        "reading supersedes nobody",
        "load.lua",
        "call('HSET', k.record, 'f', text(epoch))",
        "",
    ),
    Mutant(
        "an older write-back ends a newer generation",
        "put.lua",
        "not is_older(record.epoch, record.counter, record.mark_epoch, record.mark_counter)",
        "#write > 0",
    ),
    Mutant(
        "a mark that stands for nothing stays",
        "put.lua",
        "not is_older(ended[1], ended[2], record.mark_epoch, record.mark_counter)",
        "false",
    ),
    Mutant(
        "what was never made ends a newer generation",
        "put.lua",
        "not is_older(ended[1], ended[2], record.mark_epoch, record.mark_counter)",
        "ended[1] > 0",
    ),
    Mutant("a generation never ends", "put.lua", "call('HDEL', k.record, 'me', 'mc', 'mp')", ""),
    Mutant(
        "an older generation takes the place of a newer one",
        "put.lua",
        "and is_older(record.mark_epoch, record.mark_counter, mark[1], mark[2])",
        "",
    ),
    Mutant(
        "what is here already is marked",
        "put.lua",
        "  and is_older(record.epoch, record.counter, mark[1], mark[2])",
        "  and (mark[1] ~= record.epoch or mark[2] ~= record.counter)",
    ),
    Mutant(
        "a deletion leaves the value",
        "put.lua",
        NO_VALUE,
        "if not has_value then call('HDEL', k.record, 'w') end",
    ),
    Mutant(
        "a deletion leaves no tombstone",
        "put.lua",
        NO_VALUE,
        "if not has_value then call('DEL', k.record) return {'ok'} end",
    ),
    Mutant(
        "a deletion needs room",
        "put.lua",
        f"{NO_VALUE}\n  {VERSION}",
        f"{VERSION}\n  {NO_VALUE}",
    ),
    Mutant(
        "half of a write is done when there is no room",
        "put.lua",
        NO_VALUE,
        "call('HDEL', k.record, 'v')",
    ),
    Mutant(
        "reading needs room",
        "load.lua",
        "if call('EXISTS', k.record) == 1 then call('PERSIST', k.record) end",
        "",
    ),
    Mutant(
        "reading what is not here leaves something behind although there is no room",
        "load.lua",
        "if call('EXISTS', k.record) == 1 then call('PERSIST', k.record) end",
        "call('PERSIST', k.record)",
    ),
    Mutant(
        "a new value ends when the one before would have",
        "put.lua",
        "call('HDEL', k.record, 'x')",
        "call('HDEL', k.record, 'w')",
    ),
    Mutant(
        "what has expired lives for ever",
        "load.lua",
        "math.max(1, record.expires - now)",
        "math.max(0, record.expires - now)",
    ),
    Mutant(
        "replicas do not hear of what is written again",
        "put.lua",
        "call('PEXPIRE', k.record, text(grace_ms))\n",
        "",
    ),
    Mutant("fences are forgotten", "put.lua", "'l', ARGV[2]", "'l', ''"),
    Mutant(
        "what is marked is forgotten in the end",
        "lib/record.lua",
        "if record.mark_epoch > 0 then\n    call('PERSIST', k.record)",
        "if record.mark_epoch > 0 then\n    call('PEXPIRE', k.record, text(grace_ms))",
    ),
    Mutant(
        "tombstones are kept for ever",
        "lib/record.lua",
        "call('PEXPIRE', k.record, text(grace_ms))\n",
        "call('PERSIST', k.record)\n",
    ),
    Mutant(
        "a version goes when its value expires",
        "lib/record.lua",
        "text(math.max(0, record.expires - now) + grace_ms)",
        "text(math.max(1, record.expires - now))",
    ),
    Mutant(
        "a value that does not expire is forgotten",
        "lib/record.lua",
        "  else\n    call('PERSIST', k.record)",
        "  else\n    call('PEXPIRE', k.record, text(grace_ms))",
    ),
)


def walk(server: RedisServer, read: SourceReader, seed: int) -> None:
    """Take random steps."""
    comparison = Comparison(server, read)
    try:
        take_steps(lambda pick: Commands(comparison, pick), WEIGHTS, Random(seed), STEPS)
    finally:
        comparison.close()


TRIAL = Trial(
    mutants=MUTANTS, read=read_with_test_clock, walk=walk, walks=WALKS, walks_without=WALKS
)

if __name__ == "__main__":
    sys.exit(min(1, TRIAL.main(sys.argv[1:])))
