-- A call that comes again is answered as it was answered first and does nothing.
-- needs: now, meta, requests_0, requests_1
-- gives: recall, remember, rotate_requests, refuse_reuse
--
-- Two generations: answers go into the current one; when that is MEMORY_MS old the older is
-- unlinked (freed by a background thread, whatever its size) and becomes the current. So an answer
-- is kept for at least MEMORY_MS and at most twice that. A generation that is full before may be
-- replaced once it is MEMORY_FLOOR_MS old, which bounds the memory of a queue under heavy load.
local MEMORY_MS = 60000
local MEMORY_FLOOR_MS = 15000
local MEMORY_ENTRIES = 250000

-- Returns the digest and the answer of the first call, or nothing.
local function recall(request_id)
  if request_id == '' then return nil end
  local packed = call('HGET', requests_0, request_id) or call('HGET', requests_1, request_id)
  if packed then return cmsgpack.unpack(packed) end
  return nil
end

local function refuse_reuse()
  return {cmsgpack.pack({'reused'})}
end

-- Returns the generation to write to. Its first write is an UNLINK, so a script that must fail
-- when memory is full has to have written something of its own before.
local function rotate_requests()
  local known = call('HMGET', meta, 'request_generation', 'request_since')
  local generation, since = tonumber(known[1]) or 0, tonumber(known[2]) or 0
  local current = generation == 1 and requests_1 or requests_0
  local age = now - since
  if age < MEMORY_FLOOR_MS then return current end
  if age < MEMORY_MS and call('HLEN', current) < MEMORY_ENTRIES then return current end
  local other = generation == 1 and requests_0 or requests_1
  call('UNLINK', other)
  call('HSET', meta, 'request_generation', 1 - generation, 'request_since', now)
  return other
end

local function remember(request_id, digest, ...)
  if request_id == '' then return end
  call('HSET', rotate_requests(), request_id, cmsgpack.pack(digest, ...))
end
