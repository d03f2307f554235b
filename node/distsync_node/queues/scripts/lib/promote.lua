-- Brings what is due to where it can be claimed; at most `limit` of each kind.
-- needs: now, in_flight, ending.lua
-- gives: promote, next_change
local BURY_BYTES = 1048576  -- bodies moved to the dead letters in one go

-- Delayed messages and groups whose time has come. Returns how many.
local function promote_due(limit)
  local due = call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit)
  if #due == 0 then return 0 end
  call('ZREM', delayed, unpack(due))
  for _, member in ipairs(due) do
    if string.sub(member, 1, 1) == ':' then
      local group = string.sub(member, 2)
      local first = group_head(group)
      group_enter(group, read_state(call('HGET', states, first)))
    else
      call('ZADD', ready, read_state(call('HGET', states, member)).place, member)
    end
  end
  return #due
end

-- Claims whose deadline has passed. Returns how many.
local function promote_late(limit, max_deliveries)
  local late = call('ZRANGEBYSCORE', in_flight, '-inf', now, 'LIMIT', 0, limit)
  if #late == 0 then return 0 end
  local packed = call('HMGET', states, unpack(late))
  local buried_bytes = 0
  for i, id in ipairs(late) do
    local s = read_state(packed[i])
    if is_spent(s, max_deliveries) then
      buried_bytes = buried_bytes + s.size
      if i > 1 and buried_bytes > BURY_BYTES then return limit end
    end
    call('ZREM', in_flight, id)
    count('timed_out')
    put_back(id, s, 0, max_deliveries)
  end
  return #late
end

-- Returns how many moved and whether there may be more to move.
local function promote(limit, max_deliveries)
  local due = promote_due(limit)
  local late = promote_late(limit, max_deliveries)
  return due + late, due == limit or late == limit
end

-- Milliseconds until a delay or a claim ends; -1 when there is none.
local function next_change()
  local earliest = -1
  for _, key in ipairs({delayed, in_flight}) do
    local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
    if first then
      local wait = math.max(0, first - now)
      if earliest < 0 or wait < earliest then earliest = wait end
    end
  end
  return earliest
end
