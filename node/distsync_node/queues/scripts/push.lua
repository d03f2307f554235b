-- push: put messages into a queue, all of them or none
--
-- KEYS: meta states bodies ready turns grouped groups delayed expiries
-- KEYS: requests_0 requests_1 dedupe_0 dedupe_1 fences_0 fences_1
-- lib: clock config state requests (members) (groups) (dedupe) (fences)
--
-- ARGV[1]      {request_id, digest, push_id, {lock, token, checked}, items}
--              lock: '' = no fence; checked: the mark of an answer 'unverified', once the token was
--              found to be the lock's current exclusive grant, else ''
--              item: {delay_ms, priority, ttl_ms, dedupe_id, group}; 0 and '' = not given
-- ARGV[1 + i]  body of item i; its id is push_id .. '-' .. (i - 1)
--
-- returns      {{'ok', push_id, {{index, id}, ...}, ready, created}}  index from 0: not pushed, as it
--                  was pushed before under that id; ready: how many can be claimed now
--              {{'repeated', ...}}: the same, push_id being that of the first call | {{'reused'}}
--              {{'full', length, max_length, over}}: over: whether a sweep would make room
--              {{'fenced', newest}} | {{'unverified', mark}}
--              error -OOM: memory is full, nothing was done
local request_id, digest, push_id, fence, items = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_push_id, first_before = recall(request_id)
if first_digest then
  if first_digest ~= digest then return {REUSED} end
  return {cmsgpack.pack({'repeated', first_push_id, first_before, 0, false})}
end

local lock, token, checked = unpack(fence)
local verdict, detail = 'pass', nil
if lock ~= '' then
  verdict, detail = fences().check(lock, token, checked)
  if verdict ~= 'pass' and verdict ~= 'raise' then return {cmsgpack.pack({verdict, detail})} end
end

-- Which of them are new.
local ids = {}
for i = 1, #items do ids[i] = push_id .. '-' .. (i - 1) end
local seen = call('HMGET', k.states, unpack(ids))
local before, fresh, deduped = {}, {}, {}
for i, item in ipairs(items) do
  local dedupe_id = item[4]
  local original = seen[i] and ids[i]
  if not original and dedupe_id ~= '' then
    original = deduped[dedupe_id] or dedupe().find(dedupe_id)
  end
  if original then
    before[#before + 1] = {i - 1, original}
  else
    fresh[#fresh + 1] = i
    if dedupe_id ~= '' then deduped[dedupe_id] = ids[i] end
  end
end

if max_length > 0 and #fresh > 0 then
  local length = call('HLEN', k.states)
  if length + #fresh > max_length then
    local over = call('ZRANGEBYSCORE', k.expiries, '-inf', now, 'LIMIT', 0, 1)
    return {cmsgpack.pack({'full', length, max_length, #over > 0})}
  end
end

-- From here on everything is written. The first write is of a kind that is refused when memory is
-- full.
local ready_count, last = 0, 0
if #fresh > 0 then
  last = call('HINCRBY', k.meta, 'sequence', #fresh)
end
if not born then call('HSET', k.meta, 'born', now) end
local body_args, state_args, ready_args, expiry_args, entering = {}, {}, {}, {}, {}
for n, i in ipairs(fresh) do
  local delay_ms, priority, own_ttl_ms, _, group = unpack(items[i])
  local id, body = ids[i], ARGV[1 + i]
  local place = place_of(priority, last - #fresh + n)
  local lifetime_ms = own_ttl_ms > 0 and own_ttl_ms or ttl_ms
  local expires_at = lifetime_ms > 0 and now + lifetime_ms or 0
  local due_at = delay_ms > 0 and now + delay_ms or 0
  body_args[2 * n - 1], body_args[2 * n] = id, body
  state_args[2 * n - 1] = id
  state_args[2 * n] = new_state(place, #body, now, expires_at, due_at, 0, '', 0, group)
  if expires_at > 0 then
    expiry_args[#expiry_args + 1] = expires_at
    expiry_args[#expiry_args + 1] = id
  end
  if group == '' and delay_ms == 0 then
    ready_args[#ready_args + 1] = place
    ready_args[#ready_args + 1] = id
  else
    entering[#entering + 1] = {id, {place = place, due_at = due_at, group = group}}
  end
end
if #fresh > 0 then
  call('HSET', k.bodies, unpack(body_args))
  call('HSET', k.states, unpack(state_args))
end
if #ready_args > 0 then
  call('ZADD', k.ready, unpack(ready_args))
  ready_count = #ready_args / 2
end
if #expiry_args > 0 then call('ZADD', k.expiries, unpack(expiry_args)) end
for _, one in ipairs(entering) do
  local id, s = one[1], one[2]
  if s.group == '' then
    call('ZADD', k.delayed, s.due_at, id)
  elseif groups().join(id, s) then
    ready_count = ready_count + 1
  end
end
if verdict == 'raise' then fences().raise(lock, token) end
for dedupe_id, id in pairs(deduped) do dedupe().remember(dedupe_id, id) end
if #before > 0 then call('HINCRBY', k.meta, 'deduplicated', #before) end
remember(request_id, digest, push_id, before)
return {cmsgpack.pack({'ok', push_id, before, ready_count, not born})}
