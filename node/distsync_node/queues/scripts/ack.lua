-- ack: the messages are done and leave the queue
--
-- KEYS: meta states bodies turns grouped groups delayed in_flight requests_0 requests_1
-- lib: clock config state requests (members) (groups) receipts
--
-- ARGV[1]  {request_id, digest, ids, tokens}
--
-- returns  {{'ok', stale, ready}}: stale: indexes (from 0) of receipts that are not good, for which
--          nothing was done; ready: groups whose next message can be claimed now
--          {{'repeated', stale, 0}} | {{'reused'}}
local request_id, digest, ids, tokens = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then return {first_digest == digest and first_answer or REUSED} end

local good_ids, good_states, stale = sort_receipts(ids, tokens)
local ready_count = 0
if #good_ids > 0 then
  call('ZREM', k.in_flight, unpack(good_ids))
  call('HDEL', k.states, unpack(good_ids))
  call('HDEL', k.bodies, unpack(good_ids))
  for _, s in ipairs(good_states) do
    if s.group ~= '' and groups().settle(s.group) then ready_count = ready_count + 1 end
  end
  call('HINCRBY', k.meta, 'acked', #good_ids)
  remember(request_id, digest, cmsgpack.pack({'repeated', stale, 0}))
end
return {cmsgpack.pack({'ok', stale, ready_count})}
