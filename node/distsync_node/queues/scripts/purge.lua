-- purge: remove all messages, or all dead letters
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config requests
--
-- ARGV[1]  {request_id, digest, what}: what: 'messages' (claimed ones too: their receipts are stale
--          from now on) or 'dead'
--
-- returns  {{'ok', removed}} | {{'repeated', removed}} | {{'reused'}}
--
-- UNLINK takes the keys away at once and frees them in a background thread: however many there are,
-- Redis is held for microseconds, and the purge is one step for everyone else.
local request_id, digest, what = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then return {first_digest == digest and first_answer or REUSED} end

local removed
if what == 'dead' then
  removed = call('ZCARD', k.dead)
  call('UNLINK', k.dead, k.dead_states, k.dead_bodies)
else
  removed = call('HLEN', k.states)
  call('UNLINK', k.states, k.bodies, k.ready, k.turns, k.grouped, k.groups, k.delayed, k.in_flight,
    k.expiries)
end
if removed > 0 then
  call('HINCRBY', k.meta, 'purged', removed)
  remember(request_id, digest, cmsgpack.pack({'repeated', removed}))
end
return {cmsgpack.pack({'ok', removed})}
