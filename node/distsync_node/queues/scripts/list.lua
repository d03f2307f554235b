-- list: a page of the messages that wait, are claimed or are dead; reads only
--
-- KEYS: states bodies ready grouped delayed in_flight dead dead_states dead_bodies
-- lib: clock state describe
--
-- ARGV[1]  {order, score, member, limit, max_bytes}
--          order: 'ready' (without a group; in the order of claims), 'grouped' (by group),
--          'delayed' (without a group; by due time), 'in_flight' (by deadline), 'dead' (by death)
--          score, member: where the page before ended; '' and '' at the start
--
-- returns  {{'ok', now, messages, score, member}, body, ...}; messages as in describe.lua; score and
--          member: where this page ended, '' and '' when there is no more
--          A message that stays in its order while the pages are read is told exactly once.
local order, score, member, limit, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

-- Lua compares strings by locale, Redis by bytes.
local function bytes_before(left, right)
  for i = 1, math.min(#left, #right) do
    local l, r = string.byte(left, i), string.byte(right, i)
    if l ~= r then return l < r end
  end
  return #left < #right
end

-- The first rank behind (score, member), which need not be there any more.
local function rank_after(key)
  if member == '' then return 0 end
  local low, high = call('ZCOUNT', key, '-inf', '(' .. score), call('ZCOUNT', key, '-inf', score)
  while low < high do
    local middle = math.floor((low + high) / 2)
    if bytes_before(member, call('ZRANGE', key, middle, middle)[1]) then
      high = middle
    else
      low = middle + 1
    end
  end
  return low
end

local page  -- members and scores in turn
if order == 'grouped' then
  page = {}
  local from = member == '' and '-' or '(' .. member
  for _, one in ipairs(call('ZRANGEBYLEX', grouped, from, '+', 'LIMIT', 0, limit)) do
    table.insert(page, one)
    table.insert(page, '')
  end
else
  local key = ({ready = ready, delayed = delayed, in_flight = in_flight, dead = dead})[order]
  local rank = rank_after(key)
  page = call('ZRANGE', key, rank, rank + limit - 1, 'WITHSCORES')
end
local is_last = #page < 2 * limit

local state_key, body_key = states, bodies
if order == 'dead' then state_key, body_key = dead_states, dead_bodies end
local messages, found, bytes = {}, {}, 0
for i = 1, #page, 2 do
  local id = page[i]
  if order == 'grouped' then id = string.sub(id, string.find(id, '%z') + 16) end
  if string.sub(id, 1, 1) ~= ':' then
    local s = read_state(call('HGET', state_key, id))
    if #found > 0 and bytes + s.size > max_bytes then
      is_last = false
      break
    end
    bytes = bytes + s.size
    table.insert(found, call('HGET', body_key, id))
    if order == 'dead' then
      table.insert(messages, describe(id, s, 'dead', tonumber(page[i + 1])))
    else
      table.insert(messages, describe(id, s, phase_of(s)))
    end
  end
  member, score = page[i], page[i + 1]
end
if is_last then score, member = '', '' end
return {cmsgpack.pack({'ok', now, messages, score, member}), unpack(found)}
