-- peek: the messages a pop would claim now, in order; reads only
--
-- KEYS: meta states bodies ready turns grouped
-- lib: clock config state (members) choose describe
--
-- ARGV[1]  {count, max_bytes}
--
-- returns  {{'ok', now, messages}, body, ...}; messages as in describe.lua
local wanted, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

local ids, messages = {}, {}
for i, one in ipairs(choose(wanted, max_bytes).taken) do
  ids[i], messages[i] = one.id, describe(one.id, one.state, 'ready')
end
local head = cmsgpack.pack({'ok', now, messages})
if #ids == 0 then return {head} end
return {head, unpack(call('HMGET', k.bodies, unpack(ids)))}
