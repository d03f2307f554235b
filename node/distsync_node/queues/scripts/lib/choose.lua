-- Which messages a claim takes, in order. Reads only.
-- needs: now, meta, ready, turns, states, state.lua, groups.lua
-- gives: choose
--
-- Highest priority first. In one priority the messages without a group are one flow, in the order
-- of their places, and each group is a flow that gives one message; flows take turns.
local LOOK_PAST = 100  -- expired or spent messages that one claim may find on its way

local function flow(key, chunk)
  return {key = key, chunk = chunk, offset = 0, at = 1, members = {}, ended = false}
end

-- Returns the member and the score the flow has reached.
local function current(f)
  if f.at > #f.members and not f.ended then
    f.members = call('ZRANGE', f.key, f.offset, f.offset + f.chunk - 1, 'WITHSCORES')
    f.offset, f.at = f.offset + f.chunk, 1
    f.ended = #f.members < 2 * f.chunk
  end
  return f.members[f.at], tonumber(f.members[f.at + 1])
end

-- Whether the flow without groups comes before the first group.
local function singles_first(single_score, group_score, singles_turn)
  if not group_score then return true end
  if not single_score then return false end
  local single_rank, group_rank = math.floor(single_score / SPAN), math.floor(group_score / SPAN)
  if single_rank ~= group_rank then return single_rank < group_rank end
  return singles_turn < group_score % SPAN
end

-- Returns {taken, waste, stuck, turn, singles_turn, more}.
-- taken and waste: lists of {id, state, member}; `member` in `grouped` for those of a group.
-- stuck: groups in `turns` whose place there is no longer right. more: LOOK_PAST was not far enough.
local function choose(wanted, max_bytes, max_deliveries)
  local known = call('HMGET', meta, 'turn', 'singles_turn')
  local result = {taken = {}, waste = {}, stuck = {}, more = false,
    turn = tonumber(known[1]) or 0, singles_turn = tonumber(known[2]) or 0}
  local singles, rotation = flow(ready, wanted), flow(turns, wanted)
  local bytes, examined = 0, 0

  -- Returns whether the message was taken; false when it was waste; nil when there is no room.
  local function consider(id, s, member)
    examined = examined + 1
    if is_expired(s) or is_spent(s, max_deliveries) then
      table.insert(result.waste, {id = id, state = s, member = member})
      return false
    end
    if #result.taken > 0 and bytes + s.size > max_bytes then return nil end
    bytes = bytes + s.size
    table.insert(result.taken, {id = id, state = s, member = member})
    return true
  end

  -- The first message of the group that can be delivered, if there is one now.
  local function consider_group(group)
    local skip = 0
    while examined <= wanted + LOOK_PAST do
      local id, member = group_head(group, skip)
      local s = id and read_state(call('HGET', states, id))
      if not id or s.due_at > now then
        table.insert(result.stuck, group)
        return false
      end
      local taken = consider(id, s, member)
      if taken == nil and skip > 0 then table.insert(result.stuck, group) end
      if taken ~= false then return taken end
      skip = skip + 1
    end
    table.insert(result.stuck, group)
    return false
  end

  while #result.taken < wanted do
    local id, single_score = current(singles)
    local group, group_score = current(rotation)
    if not id and not group then break end
    if examined > wanted + LOOK_PAST then
      result.more = true
      break
    end
    local taken
    if singles_first(single_score, group_score, result.singles_turn) then
      taken = consider(id, read_state(call('HGET', states, id)))
      if taken == nil then break end
      singles.at = singles.at + 2
      if taken and group and math.floor(single_score / SPAN) == math.floor(group_score / SPAN) then
        result.turn = result.turn + 1
        result.singles_turn = result.turn
      end
    else
      taken = consider_group(group)
      if taken == nil then break end
      rotation.at = rotation.at + 2
    end
  end
  return result
end
