-- unclaim: nobody got what a pop claimed; it returns at once and no delivery is spent
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config state requests (members) (groups) (ending)
--
-- ARGV[1]  {pop_request_id, attempt}: the pop, and the try of it that got no answer to its client
--
-- returns  {{'ok', returned, ready}}: ready: how many can be claimed now that could not before
--
-- Only the try that claimed may give back, and only if no other has been answered with the claims
-- since: they are that one's own then and nothing is done. A try that came late and found claims of
-- another never gives them back. Otherwise the pop is forgotten, and its next try claims anew.
-- Doing it twice changes nothing, so it has no request id.
local pop_request_id, attempt = unpack(cmsgpack.unpack(ARGV[1]))

local digest, token, ids, last_attempt = recall(pop_request_id)
if not digest or token ~= attempt or last_attempt ~= attempt then return {cmsgpack.pack({'ok', 0, 0})} end

local returned, ready_count = 0, 0
for i, packed in ipairs(call('HMGET', k.states, unpack(ids))) do
  local s = packed and read_state(packed)
  if s and is_claimed(s, token) then
    call('ZREM', k.in_flight, ids[i])
    s.deliveries = s.deliveries - 1
    local _, can_claim = ending().put_back(ids[i], s, 0)
    if can_claim then ready_count = ready_count + 1 end
    returned = returned + 1
  end
end
forget_request(pop_request_id)
if returned > 0 then
  ending().count('unclaimed', returned)
  ending().write_counts()
end
return {cmsgpack.pack({'ok', returned, ready_count})}
