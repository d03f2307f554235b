-- Fencing tokens: a push under a lock is refused once a newer grant of that lock was seen here.
-- needs: meta, fences_0, fences_1
-- gives: check_fence, raise_fence
--
-- The newest token seen is kept per lock. It rises only for a token that the caller has found, by a
-- linearizable read, to be the current grant; the read must come after an answer 'unverified', whose
-- mark it brings back. Tokens of locks not seen for long are forgotten, a generation at a time, and
-- the mark changes with it: who read before that has to read again, so that forgetting a token never
-- lets in an older one, however long its push was under way.
local FENCES_PER_GENERATION = 10000

local function newest_token(lock)
  return math.max(tonumber(call('HGET', fences_0, lock) or 0),
    tonumber(call('HGET', fences_1, lock) or 0))
end

local function fence_mark()
  return call('HGET', meta, 'fence_mark') or '0'
end

-- Returns 'pass'; 'raise', which the caller does once it is sure to go on; 'fenced' and the newest
-- token; 'unverified' and the mark.
local function check_fence(fence)
  local lock, token, checked = unpack(fence)
  if lock == '' then return 'pass' end
  local newest = newest_token(lock)
  if token < newest then return 'fenced', newest end
  if token == newest then return 'pass' end
  local mark = fence_mark()
  if checked == mark then return 'raise' end
  return 'unverified', mark
end

local function raise_fence(fence)
  local lock, token = unpack(fence)
  local mark = tonumber(fence_mark())
  local current, other = fences_0, fences_1
  if mark % 2 == 1 then current, other = fences_1, fences_0 end
  if call('HLEN', current) >= FENCES_PER_GENERATION then
    call('UNLINK', other)
    call('HINCRBY', meta, 'fence_mark', 1)
    current = other
  end
  call('HSET', current, lock, string.format('%.0f', token))
end
