-- How a message leaves the queue, and how it comes back from a claim.
-- needs: now, meta, states, bodies, ready, delayed, expiries, dead, dead_states, dead_bodies,
--        state.lua, groups.lua
-- gives: count, write_tally, forget, bury, put_back, remove_waiting
local tally = {}

local function count(name, by)
  tally[name] = (tally[name] or 0) + (by or 1)
end

local function write_tally()
  for name, by in pairs(tally) do
    call('HINCRBY', meta, name, by)
  end
end

local function forget(id)
  call('HDEL', states, id)
  call('HDEL', bodies, id)
end

local function bury(id, s)
  s.token, s.deadline, s.due_at = '', 0, 0
  local body = call('HGET', bodies, id)
  forget(id)
  call('HSET', dead_bodies, id, body)
  call('HSET', dead_states, id, write_state(s))
  call('ZADD', dead, now, id)
  count('dead_lettered')
end

-- A claim ended without an ack. The message is in no order; `in_flight` has been left already.
-- It returns to its own place, waits until due_at, or leaves. Returns what became of it ('waiting',
-- 'dead' or 'expired') and whether something can be claimed now that could not before.
local function put_back(id, s, due_at, max_deliveries)
  local became, can_claim = 'waiting', false
  if is_spent(s, max_deliveries) then
    bury(id, s)
    became = 'dead'
  elseif is_expired(s) then
    forget(id)
    count('expired')
    became = 'expired'
  else
    s.token, s.deadline, s.due_at = '', 0, due_at
    call('HSET', states, id, write_state(s))
    if s.expires_at > 0 then call('ZADD', expiries, s.expires_at, id) end
    if s.group ~= '' then
      call('ZADD', grouped, 0, group_member(s, id))
    elseif due_at > now then
      call('ZADD', delayed, due_at, id)
    else
      call('ZADD', ready, s.place, id)
      can_claim = true
    end
  end
  if s.group ~= '' then can_claim = group_settle(s.group) end
  return became, can_claim
end

-- A message that is not claimed leaves the queue for good.
local function remove_waiting(id, s)
  call('ZREM', expiries, id)
  if s.group == '' then
    call('ZREM', ready, id)
    call('ZREM', delayed, id)
  else
    local first = group_head(s.group)
    call('ZREM', grouped, group_member(s, id))
    if first == id and call('HGET', groups, s.group) == '' then
      local turn = call('ZSCORE', turns, s.group)
      call('ZREM', turns, s.group)
      call('ZREM', delayed, group_key(s.group))
      group_settle(s.group, turn and turn % SPAN or nil)
    end
  end
  forget(id)
end
