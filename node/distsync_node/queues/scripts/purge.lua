-- purge: remove all messages, or all dead letters
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock requests
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
if first_digest then
  if first_digest ~= digest then return refuse_reuse() end
  return {first_answer}
end

local removed
if what == 'dead' then
  removed = call('ZCARD', dead)
  call('UNLINK', dead, dead_states, dead_bodies)
else
  removed = call('HLEN', states)
  call('UNLINK', states, bodies, ready, turns, grouped, groups, delayed, in_flight, expiries)
end
if removed > 0 then
  call('HINCRBY', meta, 'purged', removed)
  remember(request_id, digest, cmsgpack.pack({'repeated', removed}))
end
return {cmsgpack.pack({'ok', removed})}
