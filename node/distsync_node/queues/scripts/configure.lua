-- configure: change fields of a queue's configuration; pause and resume are the field `paused`
--
-- KEYS: meta
-- lib: clock config
--
-- ARGV[1]  {create, {field, value, ...}}: create: whether to make the queue if there is none
--
-- returns  {{'ok', {field, value, ...}, created}}: the whole configuration; {{'unknown', {}, false}}
local create, changes = unpack(cmsgpack.unpack(ARGV[1]))

local exists = call('HEXISTS', meta, 'born') == 1
if not exists and not create then return {cmsgpack.pack({'unknown', {}, false})} end
-- A removal is allowed when memory is full, and what follows it is too: a queue must be able to be
-- paused then.
call('HDEL', meta, '')
call('HSETNX', meta, 'born', now)
if #changes > 0 then call('HSET', meta, unpack(changes)) end

local fields = {}
for field in pairs(CONFIG_DEFAULTS) do table.insert(fields, field) end
local answer = {}
for i, stored in ipairs(call('HMGET', meta, unpack(fields))) do
  table.insert(answer, fields[i])
  table.insert(answer, config_number(fields[i], stored))
end
return {cmsgpack.pack({'ok', answer, not exists})}
