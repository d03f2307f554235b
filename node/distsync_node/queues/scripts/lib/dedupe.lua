-- Dedupe ids: a message pushed under a dedupe id hides later ones until its window ends.
-- needs: now, meta, dedupe_0, dedupe_1
-- gives: find_duplicate, remember_duplicate, rotate_dedupe
--
-- An entry says itself until when it counts. Two generations, as for requests, only bound the space:
-- the older goes when all in it is over and the current one is as old as the longest of its windows.
local function find_duplicate(dedupe_id)
  for _, key in ipairs({dedupe_0, dedupe_1}) do
    local packed = call('HGET', key, dedupe_id)
    if packed then
      local expires_at, id = cmsgpack.unpack(packed)
      if now < expires_at then return id end
    end
  end
  return nil
end

-- Returns the generation to write to and until when its longest entry counts.
local function rotate_dedupe()
  local known = call('HMGET', meta, 'dedupe_generation', 'dedupe_until', 'dedupe_until_before',
    'dedupe_turn_at')
  local generation = tonumber(known[1]) or 0
  local longest, before = tonumber(known[2]) or 0, tonumber(known[3]) or 0
  local current = generation == 1 and dedupe_1 or dedupe_0
  local turn_at = tonumber(known[4]) or 0
  if now < before or now < turn_at then return current, longest end
  local other = generation == 1 and dedupe_0 or dedupe_1
  call('UNLINK', other)
  call('HSET', meta, 'dedupe_generation', 1 - generation, 'dedupe_until', 0,
    'dedupe_until_before', longest)
  return other, 0
end

local function remember_duplicate(dedupe_id, id, window_ms)
  local current, longest = rotate_dedupe()
  local expires_at = now + window_ms
  call('HSET', current, dedupe_id, cmsgpack.pack(expires_at, id))
  if longest == 0 then call('HSET', meta, 'dedupe_turn_at', expires_at) end
  if expires_at > longest then call('HSET', meta, 'dedupe_until', expires_at) end
end
