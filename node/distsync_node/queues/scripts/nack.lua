-- nack: the claims end without success; the messages come back after a delay, or become dead letters
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config state requests (members) (groups) (ending) receipts
--
-- ARGV[1]  {request_id, digest, ids, tokens, delay_ms, to_dead, spend}
--          to_dead: true = to the dead letters at once, however few its deliveries
--          spend: false = this delivery is not counted: the message was not begun
--
-- returns  {{'ok', stale, ready, dead}}: stale: indexes (from 0) of receipts that are not good, for
--          which nothing was done; ready: how many can be claimed now; dead: ids of dead letters made
--          {{'repeated', stale, 0, dead}} | {{'reused'}}
local request_id, digest, ids, tokens, delay_ms, to_dead, spend = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then return {first_digest == digest and first_answer or REUSED} end

local good_ids, good_states, stale = sort_receipts(ids, tokens)
local due_at = delay_ms > 0 and now + delay_ms or 0
local ready_count, dead_ids = 0, {}
if #good_ids > 0 then
  call('ZREM', k.in_flight, unpack(good_ids))
  for i, id in ipairs(good_ids) do
    local s = good_states[i]
    if not spend then s.deliveries = s.deliveries - 1 end
    local became, can_claim = ending().put_back(id, s, due_at, to_dead)
    if can_claim then ready_count = ready_count + 1 end
    if became == 'dead' then dead_ids[#dead_ids + 1] = id end
  end
  ending().count('nacked', #good_ids)
  ending().write_counts()
  remember(request_id, digest, cmsgpack.pack({'repeated', stale, 0, dead_ids}))
end
return {cmsgpack.pack({'ok', stale, ready_count, dead_ids})}
