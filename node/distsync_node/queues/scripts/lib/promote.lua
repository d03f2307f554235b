-- Brings what is due to where it can be claimed; at most `limit` of each kind.
-- needs: now, state.lua, members.lua, groups.lua, ending.lua
-- gives: promote, next_change
local BURY_BYTES = 1048576  -- bodies moved to the dead letters in one go

local function move_due(due)
  call('ZREM', k.delayed, unpack(due))
  for _, member in ipairs(due) do
    if string.sub(member, 1, 1) == ':' then
      local group = string.sub(member, 2)
      local first = members().first(group)
      groups().enter(group, read_state(call('HGET', k.states, first)))
    else
      call('ZADD', k.ready, read_state(call('HGET', k.states, member)).place, member)
    end
  end
end

-- Returns whether it stopped before the end.
local function move_late(late)
  local buried_bytes = 0
  for i, packed in ipairs(call('HMGET', k.states, unpack(late))) do
    local id, s = late[i], read_state(packed)
    if is_spent(s) then
      buried_bytes = buried_bytes + s.size
      if i > 1 and buried_bytes > BURY_BYTES then return true end
    end
    call('ZREM', k.in_flight, id)
    ending().count('timed_out')
    ending().put_back(id, s, 0)
  end
  return false
end

-- Delays that have ended, and claims whose deadline has passed.
-- Returns how many there were and whether there may be more.
local function promote(limit)
  local until_now = string.format('%.0f', now)
  local due = call('ZRANGEBYSCORE', k.delayed, '-inf', until_now, 'LIMIT', '0', limit)
  local late = call('ZRANGEBYSCORE', k.in_flight, '-inf', until_now, 'LIMIT', '0', limit)
  local most = tonumber(limit)
  local more = #due == most or #late == most
  if #due > 0 then move_due(due) end
  if #late > 0 and move_late(late) then more = true end
  return #due + #late, more
end

-- Milliseconds until a delay or a claim ends; -1 when there is none.
local function next_change()
  local earliest = -1
  for _, key in ipairs({k.delayed, k.in_flight}) do
    local first = call('ZRANGE', key, '0', '0', 'WITHSCORES')[2]
    if first then
      local wait = math.max(0, first - now)
      if earliest < 0 or wait < earliest then earliest = wait end
    end
  end
  return earliest
end
