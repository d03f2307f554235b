-- configure: change fields of a queue's configuration; pause and resume are the field `paused`
--
-- KEYS: meta
-- lib: clock config fields
--
-- ARGV[1]  {create, {field, value, ...}}: create: whether to make the queue if there is none
--
-- returns  {{'ok', {field, value, ...}, created}}: the whole configuration; {{'unknown', {}, false}}
local create, changes = unpack(cmsgpack.unpack(ARGV[1]))

if not born and not create then return {cmsgpack.pack({'unknown', {}, false})} end
local answer = {}
for i, field in ipairs(CONFIG_FIELDS) do
  for j = 1, #changes, 2 do
    if changes[j] == field then config_values[i] = changes[j + 1] end
  end
  answer[2 * i - 1], answer[2 * i] = field, config_values[i]
end
-- A removal is allowed when memory is full, and what follows it is too: a queue must be able to be
-- paused then.
call('HDEL', k.meta, 'config')
call('HSET', k.meta, 'born', born or now, 'config', cmsgpack.pack(unpack(config_values)))
return {cmsgpack.pack({'ok', answer, not born})}
