-- Groups: messages of a group are delivered one at a time, in the order in which they were pushed.
-- needs: now, state.lua
-- gives: M.member, M.head, M.enter, M.settle, M.join, M.delay_member
--
-- A group that has messages is in `groups`: under the id of its message in flight, or under '' when
-- its first message waits. In the second case the group itself waits: in `turns` (ordered by the
-- priority of its first message, then by turn), or in `delayed` if that message is not due.
-- A group takes a new turn whenever it enters, so groups of one priority are served in rotation.

-- How a message stands in `grouped`.
function M.member(s, id)
  return s.group .. '\0' .. string.format('%015.0f', s.place % SPAN) .. id
end

-- How a group stands in `delayed`.
function M.delay_member(group)
  return ':' .. group
end

-- Returns the id of the message `skip` places behind the first that waits, and its member.
function M.head(group, skip)
  local member = call('ZRANGEBYLEX', k.grouped, '[' .. group .. '\0', '(' .. group .. '\1',
    'LIMIT', skip or 0, 1)[1]
  if not member then return nil end
  return string.sub(member, #group + 17), member
end

-- Puts a group that waits nowhere to where its first message belongs.
-- Returns whether it can be claimed now.
function M.enter(group, first, turn)
  if first.due_at > now then
    call('ZADD', k.delayed, first.due_at, M.delay_member(group))
    return false
  end
  turn = turn or call('HINCRBY', k.meta, 'turn', 1)
  call('ZADD', k.turns, first.place - first.place % SPAN + turn, group)
  return true
end

-- The group has no message in flight and waits nowhere. Returns as M.enter.
function M.settle(group, turn)
  local id = M.head(group)
  if not id then
    call('HDEL', k.groups, group)
    return false
  end
  call('HSET', k.groups, group, '')
  return M.enter(group, read_state(call('HGET', k.states, id)), turn)
end

-- A message joins its group as the last. Returns whether something can be claimed now that could not
-- before.
function M.join(id, s)
  call('ZADD', k.grouped, 0, M.member(s, id))
  return call('HSETNX', k.groups, s.group, '') == 1 and M.enter(s.group, s)
end
