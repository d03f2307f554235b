-- Which messages a claim takes, in order. Reads only.
-- needs: now, state.lua, members.lua
-- gives: choose
--
-- Highest priority first. In one priority the messages without a group are one flow, in the order
-- of their places, and each group is a flow that gives one message; flows take turns.
local LOOK_PAST = 100  -- expired or spent messages that one claim may find on its way

-- Returns {taken, waste, stuck, singles_turn, more}.
-- taken and waste: lists of {id, state, member}; `member` in `grouped` for those of a group.
-- stuck: groups in `turns` whose place there is no longer right.
-- singles_turn: the turn the messages without a group have now, nil = as it was.
-- more: LOOK_PAST was not far enough.
local function choose(wanted, max_bytes)
  local taken, waste, stuck = {}, {}, {}
  local result = {taken = taken, waste = waste, stuck = stuck, more = false}
  local left, bytes = wanted + LOOK_PAST, 0

  -- Both orders are read in chunks of `wanted`: members and scores in turn, states of the singles.
  local last = string.format('%d', wanted - 1)
  local singles = call('ZRANGE', k.ready, '0', last, 'WITHSCORES')
  local rotation = call('ZRANGE', k.turns, '0', last, 'WITHSCORES')
  local states, states_of

  -- States of the chunk of singles at hand.
  local function read_states()
    local ids = {}
    for i = 1, #singles, 2 do ids[#ids + 1] = singles[i] end
    states, states_of = call('HMGET', k.states, unpack(ids)), singles
  end

  -- What most claims come down to: no group waits, nothing is useless, all have room.
  if #rotation == 0 then
    if #singles == 0 then return result end
    read_states()
    for i, packed in ipairs(states) do
      local s = read_state(packed)
      bytes = bytes + s.size
      if is_expired(s) or is_spent(s) or i > 1 and bytes > max_bytes then
        taken, bytes = {}, 0
        result.taken = taken
        break
      end
      taken[i] = {id = singles[2 * i - 1], state = s}
    end
    if #taken > 0 then return result end
  end

  -- Returns whether the message was taken; false when it was waste; nil when there is no room.
  local function consider(id, s, member)
    left = left - 1
    if is_expired(s) or is_spent(s) then
      waste[#waste + 1] = {id = id, state = s, member = member}
      return false
    end
    if #taken > 0 and bytes + s.size > max_bytes then return nil end
    bytes = bytes + s.size
    taken[#taken + 1] = {id = id, state = s, member = member}
    return true
  end

  -- The first message of the group that can be delivered, if there is one now.
  local function consider_group(group)
    local skip = 0
    while left >= 0 do
      local id, member = members().first(group, skip)
      local s = id and read_state(call('HGET', k.states, id))
      if not id or s.due_at > now then break end
      local is_taken = consider(id, s, member)
      if is_taken == nil and skip > 0 then stuck[#stuck + 1] = group end
      if is_taken ~= false then return is_taken end
      skip = skip + 1
    end
    stuck[#stuck + 1] = group
    return false
  end

  local singles_from, rotation_from = 0, 0
  local singles_at, rotation_at = 1, 1
  local turn, singles_turn
  while #taken < wanted do
    if singles_at > #singles and #singles == 2 * wanted then
      singles_from, singles_at = singles_from + wanted, 1
      singles = call('ZRANGE', k.ready, singles_from, singles_from + wanted - 1, 'WITHSCORES')
    end
    if rotation_at > #rotation and #rotation == 2 * wanted then
      rotation_from, rotation_at = rotation_from + wanted, 1
      rotation = call('ZRANGE', k.turns, rotation_from, rotation_from + wanted - 1, 'WITHSCORES')
    end
    local id, group = singles[singles_at], rotation[rotation_at]
    if not id and not group then break end
    if left < 0 then
      result.more = true
      break
    end
    local is_single, is_contest = not group, false
    if id and group then
      local single_rank = math.floor(singles[singles_at + 1] / SPAN)
      local group_score = tonumber(rotation[rotation_at + 1])
      local group_rank = math.floor(group_score / SPAN)
      if not turn then
        local known = call('HMGET', k.meta, 'turn', 'singles_turn')
        turn, singles_turn = tonumber(known[1]) or 0, tonumber(known[2]) or 0
      end
      is_contest = single_rank == group_rank
      is_single = single_rank < group_rank or is_contest and singles_turn < group_score % SPAN
    end
    local is_taken
    if is_single then
      if states_of ~= singles then read_states() end
      is_taken = consider(id, read_state(states[(singles_at + 1) / 2]))
      singles_at = singles_at + 2
      if is_taken and is_contest then
        turn = turn + 1
        singles_turn, result.singles_turn = turn, turn
      end
    else
      is_taken = consider_group(group)
      rotation_at = rotation_at + 2
    end
    if is_taken == nil then break end
  end
  return result
end
