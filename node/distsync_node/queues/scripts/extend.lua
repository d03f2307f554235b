-- extend: the claims go on until visibility_ms from now
--
-- KEYS: meta states in_flight requests_0 requests_1
-- lib: clock config state requests receipts
--
-- ARGV[1]  {request_id, digest, ids, tokens, visibility_ms}
--
-- returns  {{'ok', stale}}: indexes (from 0) of receipts that are not good, for which nothing was done
--          {{'repeated', stale}} | {{'reused'}}
local request_id, digest, ids, tokens, visibility_ms = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then return {first_digest == digest and first_answer or REUSED} end

local good_ids, good_states, stale = sort_receipts(ids, tokens)
if #good_ids > 0 then
  -- The removal comes first as it is allowed when memory is full, and what follows it is too.
  call('ZREM', k.in_flight, unpack(good_ids))
  local state_args, claim_args = {}, {}
  for i, id in ipairs(good_ids) do
    local s = good_states[i]
    s.deadline = now + visibility_ms
    state_args[2 * i - 1], state_args[2 * i] = id, write_state(s)
    claim_args[2 * i - 1], claim_args[2 * i] = s.deadline, id
  end
  call('ZADD', k.in_flight, unpack(claim_args))
  call('HSET', k.states, unpack(state_args))
  remember(request_id, digest, cmsgpack.pack({'repeated', stale}))
end
return {cmsgpack.pack({'ok', stale})}
