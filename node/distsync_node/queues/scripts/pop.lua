-- pop: claim messages under a receipt that is good until a deadline
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock state config requests groups ending promote choose
--
-- ARGV[1]  {request_id, digest, token, count, visibility_ms, max_bytes}
--          token: second half of the receipts given out, the id of the message being the first
--
-- returns  {head, body, ...}; head: {status, messages, more, next_ms}
--          message: {id, token, visible_ms, deliveries, pushed_at, priority, group}
--          status: 'ok' | 'paused' | 'limited' (by the queue's rate) | 'repeated' (those claimed by
--          the first call of this request, as far as their receipts are good) | 'reused'
--          more: call again at once; next_ms: until something may become ready, -1 = not known
local PROMOTE_LIMIT = 100
local request_id, digest, token, wanted, visibility_ms, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

local function describe(id, s)
  return {id, s.token, s.deadline - now, s.deliveries, s.pushed_at, priority_of(s.place), s.group}
end

local function answer(status, messages, ids, more, next_ms)
  local head = cmsgpack.pack({status, messages, more, next_ms})
  if #ids == 0 then return {head} end
  return {head, unpack(call('HMGET', bodies, unpack(ids)))}
end

local first = {recall(request_id)}
if first[1] then
  if first[1] ~= digest then return refuse_reuse() end
  local first_token, ids, messages = first[2], {}, {}
  for i = 3, #first do
    local packed = call('HGET', states, first[i])
    local s = packed and read_state(packed)
    if s and is_claimed(s, first_token) then
      table.insert(ids, first[i])
      table.insert(messages, describe(first[i], s))
    end
  end
  return answer('repeated', messages, ids, false, -1)
end

local known = call('HMGET', meta, 'born', 'max_deliveries', 'paused', 'rate_count', 'rate_per_ms',
  'rate_level', 'rate_at')
if not known[1] then return answer('ok', {}, {}, false, -1) end
if config_number('paused', known[3]) == 1 then return answer('paused', {}, {}, false, -1) end
local max_deliveries = config_number('max_deliveries', known[2])

-- The rate is a bucket of rate_count claims that fills in rate_per_ms.
local rate_count, rate_per_ms = config_number('rate_count', known[4]), nil
local level
if rate_count > 0 then
  rate_per_ms = config_number('rate_per_ms', known[5])
  local elapsed = math.max(0, now - (tonumber(known[7]) or 0))
  level = math.min(rate_count, (tonumber(known[6]) or rate_count) + elapsed * rate_count / rate_per_ms)
  if level < 1 then
    return answer('limited', {}, {}, false, math.ceil((1 - level) * rate_per_ms / rate_count))
  end
  wanted = math.min(wanted, math.floor(level))
end

local _, more = promote(PROMOTE_LIMIT, max_deliveries)
local choice = choose(wanted, max_bytes, max_deliveries)
local taken, waste = choice.taken, choice.waste

-- Leave the orders first: a removal is allowed when memory is full, and what follows it is too.
local singles, members, claimed_groups, expiring = {}, {}, {}, {}
for _, list in ipairs({taken, waste}) do
  for _, one in ipairs(list) do
    if one.member then
      table.insert(members, one.member)
    else
      table.insert(singles, one.id)
    end
    if one.state.expires_at > 0 then table.insert(expiring, one.id) end
  end
end
for _, one in ipairs(taken) do
  if one.member then table.insert(claimed_groups, one.state.group) end
end
if #singles > 0 then call('ZREM', ready, unpack(singles)) end
if #members > 0 then call('ZREM', grouped, unpack(members)) end
if #claimed_groups > 0 then call('ZREM', turns, unpack(claimed_groups)) end
if #expiring > 0 then call('ZREM', expiries, unpack(expiring)) end
for _, one in ipairs(waste) do
  if is_spent(one.state, max_deliveries) then
    bury(one.id, one.state)
  else
    forget(one.id)
    count('expired')
  end
end
for _, group in ipairs(choice.stuck) do
  call('ZREM', turns, group)
  group_settle(group)
end

if #taken == 0 then
  write_tally()
  return answer('ok', {}, {}, more or choice.more, next_change())
end

local ids, messages, state_args, claim_args = {}, {}, {}, {}
for _, one in ipairs(taken) do
  local id, s = one.id, one.state
  s.token, s.deadline, s.deliveries, s.due_at = token, now + visibility_ms, s.deliveries + 1, 0
  table.insert(ids, id)
  table.insert(messages, describe(id, s))
  table.insert(state_args, id)
  table.insert(state_args, write_state(s))
  table.insert(claim_args, s.deadline)
  table.insert(claim_args, id)
  if s.group ~= '' then call('HSET', groups, s.group, id) end
end
call('HSET', states, unpack(state_args))
call('ZADD', in_flight, unpack(claim_args))
if rate_count > 0 then
  call('HSET', meta, 'rate_level', level - #taken, 'rate_at', now)
end
if choice.turn > 0 then
  call('HSET', meta, 'turn', choice.turn, 'singles_turn', choice.singles_turn)
end
count('delivered', #taken)
write_tally()
remember(request_id, digest, token, unpack(ids))
return answer('ok', messages, ids, more or choice.more, -1)
