-- Dedupe ids: a message pushed under a dedupe id hides later ones until its window ends.
-- needs: now, config.lua
-- gives: M.find, M.remember, M.forget_all_over
--
-- An entry says itself until when it counts. Two generations, as for requests, only bound the space:
-- the older goes when all in it is over and so is the first entry of the current one.
function M.find(dedupe_id)
  for _, key in ipairs({k.dedupe_0, k.dedupe_1}) do
    local packed = call('HGET', key, dedupe_id)
    if packed then
      local expires_at, id = cmsgpack.unpack(packed)
      if now < expires_at then return id end
    end
  end
  return nil
end

-- `dedupe` of meta: the current generation, until when its first and its longest entry count, until
-- when the longest of the older one does.
function M.remember(dedupe_id, id)
  local generation, first_until, longest_until, older_until = 0, 0, 0, 0
  local packed = call('HGET', k.meta, 'dedupe')
  if packed then generation, first_until, longest_until, older_until = cmsgpack.unpack(packed) end
  local expires_at = now + dedupe_window_ms
  if now >= first_until and now >= older_until then
    generation = 1 - generation
    call('UNLINK', generation == 1 and k.dedupe_1 or k.dedupe_0)
    first_until, longest_until, older_until = expires_at, 0, longest_until
  end
  call('HSET', generation == 1 and k.dedupe_1 or k.dedupe_0, dedupe_id,
    cmsgpack.pack(expires_at, id))
  call('HSET', k.meta, 'dedupe', cmsgpack.pack(generation, first_until,
    math.max(longest_until, expires_at), older_until))
end

-- For a queue to which nobody pushes any more: once no entry counts, none is kept.
function M.forget_all_over()
  local packed = call('HGET', k.meta, 'dedupe')
  if not packed then return end
  local _, _, longest_until, older_until = cmsgpack.unpack(packed)
  if now < longest_until or now < older_until then return end
  call('UNLINK', k.dedupe_0, k.dedupe_1)
  call('HDEL', k.meta, 'dedupe')
end
