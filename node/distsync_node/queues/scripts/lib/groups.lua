-- Groups: messages of a group are delivered one at a time, in the order in which they were pushed.
-- needs: now, state.lua, members.lua
-- gives: M.delay_member, M.enter, M.settle, M.join
--
-- A group that has messages is in `groups`: under the id of its message in flight, or under '' when
-- its first message waits. In the second case the group itself waits: in `turns` (ordered by the
-- priority of its first message, then by turn), or in `delayed` if that message is not due.
-- A group takes a new turn whenever it enters, so groups of one priority are served in rotation.

-- How a group stands in `delayed`.
function M.delay_member(group)
  return ':' .. group
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
  local id = members().first(group)
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
  call('ZADD', k.grouped, 0, members().name(s, id))
  return call('HSETNX', k.groups, s.group, '') == 1 and M.enter(s.group, s)
end
