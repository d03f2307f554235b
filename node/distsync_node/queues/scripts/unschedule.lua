-- unschedule: forget a schedule; what it has pushed stays
--
-- KEYS: schedules
-- lib: clock
--
-- ARGV[1]  {id}
--
-- returns  {{'ok', existed}}. Doing it twice changes nothing
local id = unpack(cmsgpack.unpack(ARGV[1]))
return {cmsgpack.pack({'ok', call('HDEL', k.schedules, id) == 1})}
