-- reschedule: a schedule was served; it is due later, unless it has changed meanwhile
--
-- KEYS: schedules
-- lib: clock
--
-- ARGV[1]  {id}
-- ARGV[2]  the schedule as it was kept, and ARGV[3] as it is to be
--
-- returns  {{'ok', changed}}: changed = false: it is another by now, and stays as it is
local id = unpack(cmsgpack.unpack(ARGV[1]))
if call('HGET', k.schedules, id) ~= ARGV[2] then return {cmsgpack.pack({'ok', false})} end
call('HSET', k.schedules, id, ARGV[3])
return {cmsgpack.pack({'ok', true})}
