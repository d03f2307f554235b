"""The coherent cache: MESI between nodes over Redis, linearizable per key. Theory of operation.

**Who serializes.** The ring owner of a key is its home (`home/`): a directory of who holds what,
and one transaction a key at a time, the rest in a FIFO. A node's lines (`lines/`) change only by
what the home grants, and by what it takes back; two nodes that hold S and both write are two
transactions, one after the other. Broadcast snooping has no such order, hence the homes.

    PrRd, hit        served here, while the node lease and the copy lease of the home last by the
                     time of this very event
    PrRd, miss       the home snoops the owner, if there is one: owner and reader S. Else it reads
                     Redis: the reader gets E if it is alone, S if not
    PrWr, E or M     nobody is invalidated. Under local durability nothing leaves the node; else the
                     home commits, for the acknowledgement says that the value is in two places
    PrWr, S or I     the home invalidates all others, waits for each, and commits; the writer owns
    eviction         E and S go at once, with a hint to the home; M goes when Redis has it
    idle             M is E when Redis has it: the home writes back what has not been written for a
                     while; under local durability the owner asks it to, and sends the value

What must hold, and why it does:

1. **One writer, and then no reader.** A home grants ownership when each other holder has yielded,
   or when that holder's copy lease has certainly ended (`copy_leases.py`: it ends at the holder
   first, is not renewed while an invalidation is unanswered, and is never revived). A yield names
   the grant; a holder that asks or is asked about a grant on its way refuses it when it comes, or,
   if that was a write, takes it as made. The home in turn serves an Ask once, and none that the
   holder has given up for a later one: so both mean the same grant, or the holder has nothing.

2. **Every live copy is the home's committed version.** A write takes effect in `Commits._commit`,
   and then no other copy is left. Under local durability the owner alone is ahead, and its value is
   fetched before anybody else gets one. A fill that was overtaken by an invalidation is served to
   those who waited before the yield, for which it was current, and not installed.

3. **What was acknowledged is in two places.** `mirrored`: in the writer's line and at the home; if
   they are one, at the ring successor, and if that is missing, silent or leaves, in Redis.
   `write_through`: in Redis. `local`: in the owner's line alone, and the key goes back to what
   Redis has if the owner dies or loses its lease. A value known to be in one place only is written
   to Redis before it is shown to anybody (`confirmed`).

4. **A value that is not the newest is never taken for it.** Before a line becomes dirty Redis gets
   a mark: a generation, which is the version of the first write that is not in Redis, and the two
   places that have it and what follows. A write-back ends only generations up to its own version;
   other places, or a write-back whose outcome is open, are another generation. Whoever yields, or
   loses its lease or its home, keeps a dirty value (`kept.py`) until Redis has it. A new home takes
   the newest copy of the marked generation or later; if a marked place answers and has none, that
   write was never made, which Redis is told, for that place may die next; if neither answers, the
   line is lost (410) until it is written or deleted, or until one of them comes back with it
   (`judging.choose_survivor`). Without a mark Redis has the newest, unless an owner wrote under
   local durability: whatever else was kept does not count, for Redis may have forgotten that it was
   deleted. After a crash another one may do so: `CacheNode.is_settled` says from when on it can no
   more.

5. **One home at a time** (`handover.py`). A home acts under one epoch, and commits, grants and
   judges what a key is only under a node lease of it. It serves a range that was another's when
   every member has said, with its copies, that it does nothing under an older epoch, and when those
   who left have no lease any more. So each home was told of each copy before it went on; a node
   that has missed an epoch drops its lines, and what it kept under local durability.

6. **Nothing from an old epoch changes state.** Messages carry the epoch, and nodes refuse others.
   In Redis, reading a key leaves the reader's epoch, and commands of homes of older ones are
   refused in the same step, however late they come (`scripts.py`); so are all for a key that Redis
   has forgotten, until who holds the node lease has read it again. A version is the epoch of the
   home and a counter, so that it rises from home to home; tombstones keep it.

7. **It goes on.** Lost messages are sent again by who waits; a holder that is silent delays a write
   by one copy lease, also when only its link to the home is cut; a home that is gone, by the node
   leases. A call that was given up is `outcome_unknown` if the home may have heard of it.

8. **A write survives a change of homes.** The writer asks the home of before what became of it, for
   as long as its copy lease of that home lasts; who leaves the ring goes on answering that. The
   answer is that nothing was done and nothing will be: the next home is asked to write. Or it is
   the one version under which the write was made or never will be: then the next home is asked to
   read, which knows all that was made under older epochs. That version: it was made. An older one:
   it was not, and is made now. A newer one: nobody can tell. What the home of before granted with
   its answer is not held; another may have written since.

Time to live: the home deletes what has expired, as a transaction of its own; a holder serves a copy
for what remained when it asked, less a margin. Under local durability the owner does it.

The transitions are tables (`tables.py`), messages are in `messages.py`, and `node.py` puts the
parts together. Sources: Papamarcos and Patel, "A Low-Overhead Coherence Solution for
Multiprocessors with Private Cache Memories" (1984) for the states; Censier and Feautrier (1978) for
the directory; Gray and Cheriton, "Leases" (1989).
"""
