-- The record of a key of the cache: one hash.
-- gives: record, is_older, text, keep_as_long_as_needed
--
--   e c       version: the epoch of the home that assigned it, and its counter; absent = never written
--   v         value; absent = deleted, or never written
--   x         when it expires, by Redis' clock; absent = never
--   l         fences: the newest token seen of each lock, packed by the caller
--   f         floor: the highest epoch of a home that has read the key. Whoever serves an older epoch
--             changes nothing any more, however long its command was under way; nor does
--             anybody once it is forgotten, until a home has read the key again
--   me mc mp  mark: Redis has not the newest value. The version of the first write that only the
--             places in mp have; such a generation ends when that version or a newer one is written
--
-- A deletion leaves everything but v and x: the tombstone. It keeps version and fences, and outlives
-- every command that may still be under way; so does what is left of a key that was only read.
local record
do
  local fields = call('HMGET', k.record, 'e', 'c', 'f', 'me', 'mc', 'x')
  record = {
    epoch = tonumber(fields[1] or 0), counter = tonumber(fields[2] or 0),
    floor = tonumber(fields[3] or 0),
    mark_epoch = tonumber(fields[4] or 0), mark_counter = tonumber(fields[5] or 0),
    expires = tonumber(fields[6] or 0),
  }
end

local function is_older(epoch, counter, than_epoch, than_counter)
  return epoch < than_epoch or (epoch == than_epoch and counter < than_counter)
end

local function text(number)
  return string.format('%.0f', number)
end

-- What has no value is forgotten after `grace_ms`, what has a time to live as long after its end;
-- what is marked never.
local function keep_as_long_as_needed(grace_ms)
  if record.mark_epoch > 0 then
    call('PERSIST', k.record)
  elseif call('HEXISTS', k.record, 'v') == 0 then
    call('PEXPIRE', k.record, text(grace_ms))
  elseif record.expires > 0 then
    call('PEXPIRE', k.record, text(math.max(0, record.expires - now) + grace_ms))
  else
    call('PERSIST', k.record)
  end
end
