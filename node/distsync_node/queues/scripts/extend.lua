-- extend: the claims go on until visibility_ms from now
--
-- KEYS: meta states in_flight requests_0 requests_1
-- lib: clock state requests receipts
--
-- ARGV[1]  {request_id, digest, ids, tokens, visibility_ms}
--
-- returns  {{'ok', stale}}: indexes (from 0) of receipts that are not good, for which nothing was done
--          {{'repeated', stale}} | {{'reused'}}
local request_id, digest, ids, tokens, visibility_ms = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then
  if first_digest ~= digest then return refuse_reuse() end
  return {first_answer}
end

local good_ids, good_states, stale = sort_receipts(ids, tokens)
if #good_ids > 0 then
  -- The removal comes first as it is allowed when memory is full, and what follows it is too.
  call('ZREM', in_flight, unpack(good_ids))
  local state_args, claim_args = {}, {}
  for i, id in ipairs(good_ids) do
    local s = good_states[i]
    s.deadline = now + visibility_ms
    table.insert(state_args, id)
    table.insert(state_args, write_state(s))
    table.insert(claim_args, s.deadline)
    table.insert(claim_args, id)
  end
  call('ZADD', in_flight, unpack(claim_args))
  call('HSET', states, unpack(state_args))
  remember(request_id, digest, cmsgpack.pack({'repeated', stale}))
end
return {cmsgpack.pack({'ok', stale})}
