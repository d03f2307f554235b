-- list: a page of the messages that wait, are claimed or are dead; reads only
--
-- KEYS: meta states bodies ready grouped delayed in_flight dead dead_states dead_bodies
-- lib: clock config state describe
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
  for _, one in ipairs(call('ZRANGEBYLEX', k.grouped, from, '+', 'LIMIT', 0, limit)) do
    page[#page + 1] = one
    page[#page + 1] = ''
  end
else
  local rank = rank_after(k[order])
  page = call('ZRANGE', k[order], rank, rank + limit - 1, 'WITHSCORES')
end
local is_last = #page < 2 * limit

local state_key, body_key = k.states, k.bodies
if order == 'dead' then state_key, body_key = k.dead_states, k.dead_bodies end
local messages, found, bytes = {}, {}, 0
for i = 1, #page, 2 do
  local id = page[i]
  if order == 'grouped' then id = string.sub(id, string.find(id, '%z') + 16) end
  if string.sub(id, 1, 1) ~= ':' then  -- a group in `delayed`: its messages are in `grouped`
    local s = read_state(call('HGET', state_key, id))
    if #found > 0 and bytes + s.size > max_bytes then
      is_last = false
      break
    end
    bytes = bytes + s.size
    found[#found + 1] = call('HGET', body_key, id)
    if order == 'dead' then
      messages[#messages + 1] = describe(id, s, 'dead', tonumber(page[i + 1]))
    else
      messages[#messages + 1] = describe(id, s, phase_of(s))
    end
  end
  member, score = page[i], page[i + 1]
end
if is_last then score, member = '', '' end
return {cmsgpack.pack({'ok', now, messages, score, member}), unpack(found)}
