-- cancel: take a message out, unless it is claimed
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock state requests groups ending
--
-- ARGV[1]  {request_id, digest, id}
--
-- returns  {{'ok'}} | {{'repeated'}} | {{'in_flight'}} | {{'unknown'}} | {{'reused'}}
local request_id, digest, id = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest = recall(request_id)
if first_digest then
  if first_digest ~= digest then return refuse_reuse() end
  return {cmsgpack.pack({'repeated'})}
end

local packed = call('HGET', states, id)
local s = packed and read_state(packed)
if s and s.token ~= '' then
  if now < s.deadline then return {cmsgpack.pack({'in_flight'})} end
  -- Its claim is over but nobody came by to say so.
  call('ZREM', in_flight, id)
  forget(id)
  if s.group ~= '' then group_settle(s.group) end
elseif s then
  remove_waiting(id, s)
elseif call('ZREM', dead, id) == 1 then
  call('HDEL', dead_states, id)
  call('HDEL', dead_bodies, id)
else
  return {cmsgpack.pack({'unknown'})}
end
count('cancelled')
write_tally()
remember(request_id, digest)
return {cmsgpack.pack({'ok'})}
