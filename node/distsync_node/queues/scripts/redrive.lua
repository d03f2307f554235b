-- redrive: dead letters go back into the queue, some of them; call again while there is more
--
-- KEYS: meta states bodies ready turns grouped groups delayed expiries dead dead_states dead_bodies
-- KEYS: requests_0 requests_1
-- lib: clock config state requests (members) (groups)
--
-- ARGV[1]  {request_id, digest, until, limit, max_bytes}
--          until: only those that died up to then; 0 on the first call, which says what to give on the
--          next, so that one that dies again meanwhile is not redriven for ever
--
-- returns  {{'ok', moved, more, until, ready}} | {{'repeated', moved, more, until, 0}} | {{'reused'}}
--          error -OOM: memory is full, nothing was done
--
-- A message comes back under its id as if pushed now: no deliveries, last in its order, its ttl anew.
local request_id, digest, until_ms, limit, max_bytes = unpack(cmsgpack.unpack(ARGV[1]))

local first_digest, first_answer = recall(request_id)
if first_digest then return {first_digest == digest and first_answer or REUSED} end

if until_ms == 0 then until_ms = now end
local ids = call('ZRANGEBYSCORE', k.dead, '-inf', until_ms, 'LIMIT', 0, limit)
if #ids == 0 then return {cmsgpack.pack({'ok', 0, false, until_ms, 0})} end
local more = #ids == limit

local found, bytes = {}, 0
for i, packed in ipairs(call('HMGET', k.dead_states, unpack(ids))) do
  local s = read_state(packed)
  bytes = bytes + s.size
  if i > 1 and bytes > max_bytes then
    more = true
    break
  end
  found[i] = s
end

local ready_count = 0
for i, s in ipairs(found) do
  local id = ids[i]
  -- HSET comes first: it is refused when memory is full.
  call('HSET', k.bodies, id, call('HGET', k.dead_bodies, id))
  local lifetime_ms = s.expires_at > 0 and s.expires_at - s.pushed_at or 0
  s.place = place_of(priority_of(s.place), call('HINCRBY', k.meta, 'sequence', 1))
  s.pushed_at, s.deliveries, s.due_at = now, 0, 0
  s.expires_at = lifetime_ms > 0 and now + lifetime_ms or 0
  call('HSET', k.states, id, write_state(s))
  if s.expires_at > 0 then call('ZADD', k.expiries, s.expires_at, id) end
  if s.group ~= '' then
    if groups().join(id, s) then ready_count = ready_count + 1 end
  else
    call('ZADD', k.ready, s.place, id)
    ready_count = ready_count + 1
  end
end
local moved = {unpack(ids, 1, #found)}
call('ZREM', k.dead, unpack(moved))
call('HDEL', k.dead_states, unpack(moved))
call('HDEL', k.dead_bodies, unpack(moved))
call('HINCRBY', k.meta, 'redriven', #moved)
remember(request_id, digest, cmsgpack.pack({'repeated', #moved, more, until_ms, 0}))
return {cmsgpack.pack({'ok', #moved, more, until_ms, ready_count})}
