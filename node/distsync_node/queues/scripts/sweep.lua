-- sweep: do what time has made due, some of it; call again while there is more
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock state config requests groups ending promote
--
-- ARGV[1]  {limit}: of each kind: delays that ended, claims whose deadline passed, messages whose ttl
--          ran out
--
-- returns  {{'ok', moved, more, next_ms}}: next_ms: until a delay or a claim ends, -1 = there is none
local limit = unpack(cmsgpack.unpack(ARGV[1]))

local known = call('HMGET', meta, 'born', 'max_deliveries')
if not known[1] then return {cmsgpack.pack({'ok', 0, false, -1})} end

local moved, more = promote(limit, config_number('max_deliveries', known[2]))
local over = call('ZRANGEBYSCORE', expiries, '-inf', now, 'LIMIT', 0, limit)
for _, id in ipairs(over) do
  remove_waiting(id, read_state(call('HGET', states, id)))
  count('expired')
end
if call('EXISTS', requests_0, requests_1) > 0 then rotate_requests() end
write_tally()
return {cmsgpack.pack({'ok', moved + #over, more or #over == limit, next_change()})}
