-- schedule: keep what is to be pushed again and again; a schedule of that id is replaced
--
-- KEYS: meta schedules
-- lib: clock config
--
-- ARGV[1]  {id, limit}
-- ARGV[2]  the schedule as it is kept
--
-- returns  {{'ok', created}} | {{'too_many'}}: the queue has `limit` of them already
--          error -OOM: memory is full, nothing was done
local id, limit = unpack(cmsgpack.unpack(ARGV[1]))

if call('HEXISTS', k.schedules, id) == 0 and call('HLEN', k.schedules) >= limit then
  return {cmsgpack.pack({'too_many'})}
end
call('HSET', k.schedules, id, ARGV[2])
if not born then call('HSET', k.meta, 'born', now) end
return {cmsgpack.pack({'ok', not born})}
