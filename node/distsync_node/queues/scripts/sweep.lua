-- sweep: do what time has made due, some of it; call again while there is more
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1 dedupe_0 dedupe_1
-- lib: clock config state requests (members) (groups) (ending) (dedupe) promote
--
-- ARGV[1]  {limit}: of each kind: delays that ended, claims whose deadline passed, messages whose ttl
--          ran out. Requests and dedupe ids that are too old are forgotten
--
-- returns  {{'ok', moved, more, next_ms}}: next_ms: until a delay or a claim ends, -1 = there is none
local limit = unpack(cmsgpack.unpack(ARGV[1]))

if not born then return {cmsgpack.pack({'ok', 0, false, -1})} end

local moved, more = promote(limit)
local over = call('ZRANGEBYSCORE', k.expiries, '-inf', now, 'LIMIT', '0', limit)
for _, id in ipairs(over) do
  ending().remove_waiting(id, read_state(call('HGET', k.states, id)))
  ending().count('expired')
end
if ending_made then ending().write_counts() end
if call('EXISTS', k.requests_0, k.requests_1) > 0 then rotate_requests() end
dedupe().forget_all_over()
return {cmsgpack.pack({'ok', moved + #over, more or #over == limit, next_change()})}
