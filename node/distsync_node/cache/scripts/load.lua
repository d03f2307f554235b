-- load: read a key for its home, and let no home of an older epoch change it from now on
--
-- KEYS: record
-- lib: clock record
--
-- ARGV[1]  {epoch, grace_ms}
--          epoch: the home's; grace_ms: how long what has no value is remembered. It is longer than
--          any command can be under way
--
-- returns  {'ok', epoch, counter, value, remaining_ms, fences, mark_epoch, mark_counter, places}:
--              value nil = none; remaining_ms 0 = does not expire, 1 = has expired; mark_epoch 0 =
--              no mark
--          {'superseded'}: a home of a newer epoch has read the key
--          error -OOM: memory is full, and the key is not here; nothing was done
local epoch, grace_ms = unpack(cmsgpack.unpack(ARGV[1]))
if epoch < record.floor then return {'superseded'} end

if epoch > record.floor then
  -- Once a script has written, it may go on when memory is full: what is here can be read then,
  -- and deleted. What is not here leaves something behind, for which there is no room.
  if call('EXISTS', k.record) == 1 then call('PERSIST', k.record) end
  call('HSET', k.record, 'f', text(epoch))
  keep_as_long_as_needed(grace_ms)
end
local fields = call('HMGET', k.record, 'v', 'l', 'mp')
local remaining_ms = 0
if fields[1] and record.expires > 0 then remaining_ms = math.max(1, record.expires - now) end
return {
  'ok', text(record.epoch), text(record.counter), fields[1], text(remaining_ms), fields[2] or '',
  text(record.mark_epoch), text(record.mark_counter), fields[3] or '',
}
