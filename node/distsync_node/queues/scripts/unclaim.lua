-- unclaim: the claims never reached anyone; the messages return at once and no delivery is spent
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config state (members) (groups) (ending) receipts
--
-- ARGV[1]  {pop_request_id, ids, tokens}
--          pop_request_id: the pop that claimed them, forgotten so that its retry claims anew
--
-- returns  {{'ok', stale, ready}}: as nack. Doing it twice changes nothing, so it has no request id
local pop_request_id, ids, tokens = unpack(cmsgpack.unpack(ARGV[1]))

local good_ids, good_states, stale = sort_receipts(ids, tokens)
local ready_count = 0
if #good_ids > 0 then
  call('ZREM', k.in_flight, unpack(good_ids))
  for i, id in ipairs(good_ids) do
    local s = good_states[i]
    s.deliveries = s.deliveries - 1
    local _, can_claim = ending().put_back(id, s, 0)
    if can_claim then ready_count = ready_count + 1 end
  end
  call('HDEL', k.requests_0, pop_request_id)
  call('HDEL', k.requests_1, pop_request_id)
  ending().count('unclaimed', #good_ids)
  ending().write_counts()
end
return {cmsgpack.pack({'ok', stale, ready_count})}
