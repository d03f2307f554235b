-- schedules: all schedules of a queue, of which there are few. Writes nothing
--
-- KEYS: schedules
-- lib: clock
--
-- ARGV[1]  {}
--
-- returns  {{'ok', now}, id, packed, id, packed, ...}
local all = call('HGETALL', k.schedules)
return {cmsgpack.pack({'ok', now}), unpack(all)}
