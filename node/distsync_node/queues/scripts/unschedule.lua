-- unschedule: forget a schedule; what it has pushed stays
--
-- KEYS: schedules
-- lib: clock
--
-- ARGV[1]  {id}
--
-- returns  {{'ok', existed}}. Doing it twice changes nothing
--          error -OOM: memory is full, and there is no such schedule
local id = unpack(cmsgpack.unpack(ARGV[1]))
local existed = call('HDEL', k.schedules, id) == 1
if not existed then
  -- Written all the same, for WAIT (lib/requests.lua): the first try may have removed it.
  call('HSET', k.schedules, id, '')
  call('HDEL', k.schedules, id)
end
return {cmsgpack.pack({'ok', existed})}
