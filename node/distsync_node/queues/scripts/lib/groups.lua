-- Groups: messages of a group are delivered one at a time, in the order in which they were pushed.
-- needs: now, meta, states, grouped, groups, turns, delayed, state.lua
-- gives: group_member, group_head, group_enter, group_settle, group_key, next_turn
--
-- A group that has messages is in `groups`: under the id of its message in flight, or under '' when
-- its first message waits. In the second case the group itself waits: in `turns` (ordered by the
-- priority of its first message, then by turn), or in `delayed` if that message is not due.
-- A group takes a new turn whenever it enters, so groups of one priority are served in rotation.
local function group_member(s, id)
  return s.group .. '\0' .. string.format('%015.0f', s.place % SPAN) .. id
end

local function group_key(group)
  return ':' .. group
end

-- Returns the id of the message `skip` places behind the first that waits, and its member.
local function group_head(group, skip)
  local member = call('ZRANGEBYLEX', grouped, '[' .. group .. '\0', '(' .. group .. '\1',
    'LIMIT', skip or 0, 1)[1]
  if not member then return nil end
  return string.sub(member, #group + 17), member
end

local function next_turn()
  return call('HINCRBY', meta, 'turn', 1)
end

-- Puts a group that waits nowhere to where its first message belongs.
-- Returns whether it can be claimed now.
local function group_enter(group, first, turn)
  if first.due_at > now then
    call('ZADD', delayed, first.due_at, group_key(group))
    return false
  end
  call('ZADD', turns, first.place - first.place % SPAN + (turn or next_turn()), group)
  return true
end

-- The group has no message in flight any more and waits nowhere. Returns as group_enter.
local function group_settle(group, turn)
  local id = group_head(group)
  if not id then
    call('HDEL', groups, group)
    return false
  end
  call('HSET', groups, group, '')
  return group_enter(group, read_state(call('HGET', states, id)), turn)
end
