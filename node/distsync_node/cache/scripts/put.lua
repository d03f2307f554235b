-- put: write a key back if the version is newer than what is here, end and set a mark
--
-- KEYS: record
-- lib: clock record
--
-- ARGV[1]  {epoch, grace_ms, write, mark, ended}
--          epoch: the home's, which may be newer than that of the version
--          write: {epoch, counter, remaining_ms, has_value}, or {} = nothing to write;
--          remaining_ms 0 = does not expire
--          mark: {epoch, counter}, or {} = none to set
--          ended: {epoch, counter}; marks up to there stand for writes that were never made
-- ARGV[2]  the fences, packed by the caller
-- ARGV[3]  the places of the mark, packed by the caller
-- ARGV[4]  the value, if has_value
--
-- returns  {'ok'}: this or something newer is here; calling it again changes nothing. A mark whose
--              version is here already, or older than the mark that is here, was not set
--          {'superseded'}: a home of a newer epoch has read the key; nothing was done
--          {'forgotten'}: nothing is known of the key, not even who has read it; nothing was done.
--              Whoever still is its home has to read it again first
--          error -OOM: memory is full, nothing was done. Never for a deletion without a mark
local epoch, grace_ms, write, mark, ended = unpack(cmsgpack.unpack(ARGV[1]))
if record.floor == 0 then return {'forgotten'} end
if epoch < record.floor then return {'superseded'} end

if #write > 0 and is_older(record.epoch, record.counter, write[1], write[2]) then
  local remaining_ms, has_value = write[3], write[4]
  record.epoch, record.counter = write[1], write[2]
  record.expires = (has_value and remaining_ms > 0) and now + remaining_ms or 0
  -- The first write is of a kind that is refused when memory is full; not so for a deletion.
  if not has_value then call('HDEL', k.record, 'v') end
  call('HSET', k.record, 'e', text(record.epoch), 'c', text(record.counter), 'l', ARGV[2])
  if has_value then call('HSET', k.record, 'v', ARGV[4]) end
  if record.expires > 0 then
    call('HSET', k.record, 'x', text(record.expires))
  else
    call('HDEL', k.record, 'x')
  end
end

if #mark > 0
  and is_older(record.mark_epoch, record.mark_counter, mark[1], mark[2])
  and is_older(record.epoch, record.counter, mark[1], mark[2])
then
  record.mark_epoch, record.mark_counter = mark[1], mark[2]
  call('HSET', k.record, 'me', text(mark[1]), 'mc', text(mark[2]), 'mp', ARGV[3])
end
-- A generation ends when its first version, or a newer one, is here, or was never made; not with an
-- older one.
if record.mark_epoch > 0
  and (not is_older(record.epoch, record.counter, record.mark_epoch, record.mark_counter)
    or not is_older(ended[1], ended[2], record.mark_epoch, record.mark_counter)) then
  record.mark_epoch, record.mark_counter = 0, 0
  call('HDEL', k.record, 'me', 'mc', 'mp')
end
-- A WAIT vouches only for what its connection wrote. So something is written also when all was here
-- already, perhaps by a call whose answer was lost before any replica had it.
call('PEXPIRE', k.record, text(grace_ms))
keep_as_long_as_needed(grace_ms)
return {'ok'}
