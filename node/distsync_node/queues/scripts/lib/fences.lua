-- Fencing tokens: a push under a lock is refused once a newer grant of that lock was seen here.
-- gives: M.check, M.raise
--
-- The newest token seen is kept per lock. It rises only for a token that the caller has found, by a
-- linearizable read, to be the current grant; the read must come after an answer 'unverified', whose
-- mark it brings back. Tokens of locks not seen for long are forgotten, a generation at a time, and
-- the mark changes with it: who read before that has to read again, so that forgetting a token never
-- lets in an older one, however long its push was under way.
local FENCES_PER_GENERATION = 10000

local function current_mark()
  return call('HGET', k.meta, 'fence_mark') or '0'
end

-- Returns 'pass'; 'raise', which the caller does once it is sure to go on; 'fenced' and the newest
-- token; 'unverified' and the mark.
function M.check(lock, token, checked)
  local newest = math.max(tonumber(call('HGET', k.fences_0, lock) or 0),
    tonumber(call('HGET', k.fences_1, lock) or 0))
  if token < newest then return 'fenced', newest end
  if token == newest then return 'pass' end
  local mark = current_mark()
  if checked == mark then return 'raise' end
  return 'unverified', mark
end

function M.raise(lock, token)
  local current, other = k.fences_0, k.fences_1
  if current_mark() % 2 == 1 then current, other = other, current end
  if call('HLEN', current) >= FENCES_PER_GENERATION then
    call('UNLINK', other)
    call('HINCRBY', k.meta, 'fence_mark', 1)
    current = other
  end
  call('HSET', current, lock, string.format('%.0f', token))
end
