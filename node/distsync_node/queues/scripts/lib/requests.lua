-- A call that comes again is answered as it was answered first and does nothing.
-- needs: now, config.lua (requests_packed: which generation is current, since when)
-- gives: recall, remember, forget_request, rotate_requests, REUSED
--
-- Two generations: answers go into the current one; when that is MEMORY_MS old the older is
-- unlinked (freed by a background thread, whatever its size) and becomes the current. So an answer
-- is kept for at least MEMORY_MS and for hardly more than twice that, however many there are: clients
-- repeat a call that may have been done for almost as long. What bounds them is the memory of Redis.
local MEMORY_MS = 120000
local REUSED = '\145\166reused'  -- cmsgpack.pack({'reused'})

-- Returns the digest and the answer of the first call, or nothing.
-- An answer that is found is written once more. Where answers wait for replicas, WAIT looks at what
-- its connection wrote: for one that wrote nothing it would vouch for a first call that no replica
-- has. (Redis 7.2 and later; before, any command counted.) The removal comes first as it is allowed
-- when memory is full, and what follows it is too.
local function recall(request_id)
  for _, generation in ipairs({k.requests_0, k.requests_1}) do
    local packed = call('HGET', generation, request_id)
    if packed then
      call('HDEL', generation, request_id)
      call('HSET', generation, request_id, packed)
      return cmsgpack.unpack(packed)
    end
  end
end

local function forget_request(request_id)
  call('HDEL', k.requests_0, request_id)
  call('HDEL', k.requests_1, request_id)
end

-- Returns the generation to write to. Its first write is an UNLINK, so a script that must fail
-- when memory is full has to have written something of its own before.
local function rotate_requests()
  local generation, since = 0, 0
  if requests_packed then generation, since = cmsgpack.unpack(requests_packed) end
  if now - since < MEMORY_MS then return generation == 1 and k.requests_1 or k.requests_0 end
  local other = generation == 1 and k.requests_0 or k.requests_1
  call('UNLINK', other)
  call('HSET', k.meta, 'requests', cmsgpack.pack(1 - generation, now))
  return other
end

local function remember(request_id, ...)
  call('HSET', rotate_requests(), request_id, cmsgpack.pack(...))
end
