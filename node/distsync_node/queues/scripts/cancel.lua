-- cancel: take a message out, unless it is claimed
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config state requests (members) (groups) (ending)
--
-- ARGV[1]  {request_id, digest, id}
--
-- returns  {{'ok'}} | {{'repeated'}} | {{'in_flight'}} | {{'unknown'}} | {{'reused'}}
local request_id, digest, id = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest = recall(request_id)
if first_digest then return {first_digest == digest and cmsgpack.pack({'repeated'}) or REUSED} end

local packed = call('HGET', k.states, id)
local s = packed and read_state(packed)
if s and s.token ~= '' then
  if now < s.deadline then return {cmsgpack.pack({'in_flight'})} end
  -- Its claim is over but nobody came by to say so.
  call('ZREM', k.in_flight, id)
  ending().forget(id)
  if s.group ~= '' then groups().settle(s.group) end
elseif s then
  ending().remove_waiting(id, s)
elseif call('ZREM', k.dead, id) == 1 then
  call('HDEL', k.dead_states, id)
  call('HDEL', k.dead_bodies, id)
else
  return {cmsgpack.pack({'unknown'})}
end
call('HINCRBY', k.meta, 'cancelled', 1)
remember(request_id, digest)
return {cmsgpack.pack({'ok'})}
