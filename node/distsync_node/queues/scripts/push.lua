-- push: put messages into a queue, all of them or none
--
-- KEYS: meta states bodies ready turns grouped groups delayed expiries
-- KEYS: requests_0 requests_1 dedupe_0 dedupe_1 fences_0 fences_1
-- lib: clock state config requests groups dedupe fences
--
-- ARGV[1]      {request_id, digest, push_id, {lock, token, checked}, items}
--              lock: '' = no fence; checked: the mark of an answer 'unverified', once the token was
--              found to be the lock's current exclusive grant, else ''
--              item: {delay_ms, priority, ttl_ms, dedupe_id, group}; 0 and '' = not given
-- ARGV[1 + i]  body of item i; its id is push_id .. '-' .. (i - 1)
--
-- returns      {'ok', {{index, id}, ...}, ready, created}  index from 0: not pushed, as it was pushed
--                  before under that id; ready: how many can be claimed now
--              {'repeated', as above} | {'reused'}
--              {'full', length, max_length} | {'fenced', newest} | {'unverified', mark}
--              error -OOM: memory is full, nothing was done
local request_id, digest, push_id, fence, items = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then
  if first_digest ~= digest then return refuse_reuse() end
  return {first_answer}
end

local known = call('HMGET', meta, 'born', 'sequence', 'pushed', 'max_length', 'ttl_ms',
  'dedupe_window_ms')
local sequence, pushed = tonumber(known[2]) or 0, tonumber(known[3]) or 0
local max_length = config_number('max_length', known[4])
local ttl_ms = config_number('ttl_ms', known[5])
local window_ms = config_number('dedupe_window_ms', known[6])

local verdict, detail = check_fence(fence)
if verdict ~= 'pass' and verdict ~= 'raise' then return {cmsgpack.pack({verdict, detail})} end

-- Which of them are new.
local ids = {}
for i = 1, #items do ids[i] = push_id .. '-' .. (i - 1) end
local seen = call('HMGET', states, unpack(ids))
local before, fresh, deduped = {}, {}, {}
for i, item in ipairs(items) do
  local dedupe_id = item[4]
  local original = seen[i] and ids[i]
  if not original and dedupe_id ~= '' then
    original = deduped[dedupe_id] or find_duplicate(dedupe_id)
  end
  if original then
    table.insert(before, {i - 1, original})
  else
    table.insert(fresh, i)
    if dedupe_id ~= '' then deduped[dedupe_id] = ids[i] end
  end
end

if max_length > 0 and #fresh > 0 then
  local length = call('HLEN', states)
  if length + #fresh > max_length then return {cmsgpack.pack({'full', length, max_length})} end
end

-- From here on everything is written. HSET comes first: it is refused when memory is full.
local body_args, state_args, ready_args, expiry_args, entering = {}, {}, {}, {}, {}
for _, i in ipairs(fresh) do
  local delay_ms, priority, own_ttl_ms, dedupe_id, group = unpack(items[i])
  local id, body = ids[i], ARGV[1 + i]
  local ttl = own_ttl_ms > 0 and own_ttl_ms or ttl_ms
  sequence = sequence + 1
  local s = {
    place = place_of(priority, sequence), size = #body, pushed_at = now,
    expires_at = ttl > 0 and now + ttl or 0, due_at = delay_ms > 0 and now + delay_ms or 0,
    deliveries = 0, token = '', deadline = 0, group = group,
  }
  body_args[#body_args + 1] = id
  body_args[#body_args + 1] = body
  state_args[#state_args + 1] = id
  state_args[#state_args + 1] = write_state(s)
  if s.expires_at > 0 then
    expiry_args[#expiry_args + 1] = s.expires_at
    expiry_args[#expiry_args + 1] = id
  end
  if group == '' and delay_ms == 0 then
    ready_args[#ready_args + 1] = s.place
    ready_args[#ready_args + 1] = id
  else
    entering[#entering + 1] = {id, s}
  end
end
local ready_count = #ready_args / 2
if #fresh > 0 then
  call('HSET', bodies, unpack(body_args))
  call('HSET', states, unpack(state_args))
end
if #ready_args > 0 then call('ZADD', ready, unpack(ready_args)) end
if #expiry_args > 0 then call('ZADD', expiries, unpack(expiry_args)) end
for _, one in ipairs(entering) do
  local id, s = one[1], one[2]
  if s.group == '' then
    call('ZADD', delayed, s.due_at, id)
  else
    call('ZADD', grouped, 0, group_member(s, id))
    if call('HSETNX', groups, s.group, '') == 1 and group_enter(s.group, s) then
      ready_count = ready_count + 1
    end
  end
end
call('HSET', meta, 'sequence', sequence, 'pushed', pushed + #fresh, 'born', known[1] or now)
if verdict == 'raise' then raise_fence(fence) end
for dedupe_id, id in pairs(deduped) do remember_duplicate(dedupe_id, id, window_ms) end
if #before > 0 then call('HINCRBY', meta, 'deduplicated', #before) end
remember(request_id, digest, cmsgpack.pack({'repeated', before, 0, false}))
return {cmsgpack.pack({'ok', before, ready_count, not known[1]})}
