-- pop: claim messages under a receipt that is good until a deadline
--
-- KEYS: meta states bodies ready turns grouped groups delayed in_flight expiries
-- KEYS: dead dead_states dead_bodies requests_0 requests_1
-- lib: clock config state requests (members) (groups) (ending) promote choose
--
-- ARGV[1]  {request_id, digest, attempt, count, visibility_ms, max_bytes}
--          attempt: names this try of the request, as against those by other nodes. That of the first
--          try is the second half of its receipts, the id of the message being the first
--
-- returns  {head, body, ...}; head: {status, messages, more, next_ms}
--          message: {id, token, visible_ms, deliveries, pushed_at, priority, group}
--          status: 'ok' | 'paused' | 'limited' (by the queue's rate) | 'repeated' (those claimed by
--          the first call of this request, as far as their receipts are good) | 'reused'
--          more: call again at once; next_ms: until something may become ready, -1 = not known
local request_id, digest, attempt, wanted, visibility_ms, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

local function describe(id, s)
  return {id, s.token, s.deadline - now, s.deliveries, s.pushed_at, priority_of(s.place), s.group}
end

local function answer(status, messages, ids, more, next_ms)
  local head = cmsgpack.pack({status, messages, more, next_ms})
  if #ids == 0 then return {head} end
  return {head, unpack(call('HMGET', k.bodies, unpack(ids)))}
end

local first_digest, first_attempt, first_ids, last_attempt = recall(request_id)
if first_digest then
  if first_digest ~= digest then return {REUSED} end
  local ids, messages = {}, {}
  for i, packed in ipairs(call('HMGET', k.states, unpack(first_ids))) do
    local s = packed and read_state(packed)
    if s and is_claimed(s, first_attempt) then
      ids[#ids + 1] = first_ids[i]
      messages[#messages + 1] = describe(first_ids[i], s)
    end
  end
  if #ids > 0 and last_attempt ~= attempt then
    -- What was claimed is this try's now: one before it may not give it back any more.
    forget_request(request_id)
    remember(request_id, digest, first_attempt, first_ids, attempt)
  end
  return answer('repeated', messages, ids, false, -1)
end

if not born then return answer('ok', {}, {}, false, -1) end
if paused == 1 then return answer('paused', {}, {}, false, -1) end

-- The rate is a bucket of rate_count claims that fills in rate_per_ms.
local level
if rate_count > 0 then
  local filled, filled_at = rate_count, now
  local packed = call('HGET', k.meta, 'rate')
  if packed then filled, filled_at = cmsgpack.unpack(packed) end
  local filling = math.max(0, now - filled_at) * rate_count / rate_per_ms
  level = math.min(rate_count, filled + filling)
  if level < 1 then
    return answer('limited', {}, {}, false, math.ceil((1 - level) * rate_per_ms / rate_count))
  end
  wanted = math.min(wanted, math.floor(level))
end

local _, more = promote('100')
local choice = choose(wanted, max_bytes)
local taken, waste = choice.taken, choice.waste

-- Leave the orders first: a removal is allowed when memory is full, and what follows it is too.
local singles, members, claimed_groups, expiring = {}, {}, {}, {}
local function leave(one)
  if one.member then
    members[#members + 1] = one.member
  else
    singles[#singles + 1] = one.id
  end
  if one.state.expires_at > 0 then expiring[#expiring + 1] = one.id end
end
for _, one in ipairs(taken) do
  leave(one)
  if one.member then claimed_groups[#claimed_groups + 1] = one.state.group end
end
for _, one in ipairs(waste) do leave(one) end
if #singles > 0 then call('ZREM', k.ready, unpack(singles)) end
if #members > 0 then call('ZREM', k.grouped, unpack(members)) end
if #claimed_groups > 0 then call('ZREM', k.turns, unpack(claimed_groups)) end
if #expiring > 0 then call('ZREM', k.expiries, unpack(expiring)) end
if choice.singles_turn then
  call('HSET', k.meta, 'turn', choice.singles_turn, 'singles_turn', choice.singles_turn)
end
for _, one in ipairs(waste) do
  if is_spent(one.state) then
    ending().bury(one.id, one.state)
  else
    ending().drop(one.id)
  end
end
for _, group in ipairs(choice.stuck) do
  call('ZREM', k.turns, group)
  groups().settle(group)
end
if ending_made then ending().write_counts() end
if #taken == 0 then return answer('ok', {}, {}, more or choice.more, next_change()) end

local ids, messages, state_args, claim_args = {}, {}, {}, {}
local deadline = now + visibility_ms
local deadline_text = string.format('%.0f', deadline)
for i, one in ipairs(taken) do
  local id, s = one.id, one.state
  s.token, s.deadline, s.deliveries, s.due_at = attempt, deadline, s.deliveries + 1, 0
  ids[i], messages[i] = id, describe(id, s)
  state_args[2 * i - 1], state_args[2 * i] = id, write_state(s)
  claim_args[2 * i - 1], claim_args[2 * i] = deadline_text, id
  if s.group ~= '' then call('HSET', k.groups, s.group, id) end
end
call('HSET', k.states, unpack(state_args))
call('ZADD', k.in_flight, unpack(claim_args))
call('HINCRBY', k.meta, 'delivered', #taken)
if level then call('HSET', k.meta, 'rate', cmsgpack.pack(level - #taken, now)) end
remember(request_id, digest, attempt, ids, attempt)
return answer('ok', messages, ids, more or choice.more, -1)
