-- How a message leaves the queue, and how it comes back from a claim.
-- needs: now, state.lua, members.lua, groups.lua
-- gives: M.count, M.write_counts, M.forget, M.bury, M.drop, M.put_back, M.remove_waiting
local counts = {}

function M.count(name, by)
  counts[name] = (counts[name] or 0) + (by or 1)
end

function M.write_counts()
  for name, by in pairs(counts) do
    call('HINCRBY', k.meta, name, by)
  end
end

function M.forget(id)
  call('HDEL', k.states, id)
  call('HDEL', k.bodies, id)
end

function M.bury(id, s)
  s.token, s.deadline, s.due_at = '', 0, 0
  local body = call('HGET', k.bodies, id)
  M.forget(id)
  call('HSET', k.dead_bodies, id, body)
  call('HSET', k.dead_states, id, write_state(s))
  call('ZADD', k.dead, now, id)
  M.count('dead_lettered')
end

-- Its ttl is over.
function M.drop(id)
  M.forget(id)
  M.count('expired')
end

-- A claim ended without an ack. The message is in no order; `in_flight` has been left already.
-- It returns to its own place, waits until due_at, or leaves. Returns what became of it ('waiting',
-- 'dead' or 'expired') and whether something can be claimed now that could not before.
function M.put_back(id, s, due_at, to_dead)
  local became, can_claim = 'waiting', false
  if to_dead or is_spent(s) then
    M.bury(id, s)
    became = 'dead'
  elseif is_expired(s) then
    M.drop(id)
    became = 'expired'
  else
    s.token, s.deadline, s.due_at = '', 0, due_at
    call('HSET', k.states, id, write_state(s))
    if s.expires_at > 0 then call('ZADD', k.expiries, s.expires_at, id) end
    if s.group ~= '' then
      call('ZADD', k.grouped, 0, members().name(s, id))
    elseif due_at > now then
      call('ZADD', k.delayed, due_at, id)
    else
      call('ZADD', k.ready, s.place, id)
      can_claim = true
    end
  end
  if s.group ~= '' then can_claim = groups().settle(s.group) end
  return became, can_claim
end

-- A message that is not claimed leaves the queue for good.
function M.remove_waiting(id, s)
  call('ZREM', k.expiries, id)
  if s.group == '' then
    call('ZREM', k.ready, id)
    call('ZREM', k.delayed, id)
  else
    local group = s.group
    local first = members().first(group)
    call('ZREM', k.grouped, members().name(s, id))
    if first == id and call('HGET', k.groups, group) == '' then
      local score = call('ZSCORE', k.turns, group)
      call('ZREM', k.turns, group)
      call('ZREM', k.delayed, groups().delay_member(group))
      groups().settle(group, score and score % SPAN or nil)
    end
  end
  M.forget(id)
end
