-- peek: the messages a pop would claim now, in order; reads only
--
-- KEYS: meta states bodies ready turns grouped
-- lib: clock state config groups choose describe
--
-- ARGV[1]  {count, max_bytes}
--
-- returns  {{'ok', now, messages}, body, ...}; messages as in describe.lua
local wanted, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

local max_deliveries = config_number('max_deliveries', call('HGET', meta, 'max_deliveries'))
local ids, messages = {}, {}
for _, one in ipairs(choose(wanted, max_bytes, max_deliveries).taken) do
  table.insert(ids, one.id)
  table.insert(messages, describe(one.id, one.state, 'ready'))
end
local head = cmsgpack.pack({'ok', now, messages})
if #ids == 0 then return {head} end
return {head, unpack(call('HMGET', bodies, unpack(ids)))}
