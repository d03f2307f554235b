-- stats: how much there is in which state, what has happened so far, the configuration; reads only
--
-- KEYS: meta states ready turns grouped groups in_flight dead requests_0 requests_1
-- lib: clock config fields state (members)
--
-- ARGV[1]  {}
--
-- returns  {{'ok', now, {name, value, ...}}} | {{'unknown', now, {}}}
--          ready, grouped, delayed, in_flight, dead: messages; grouped: those that wait in a group,
--          due or not. groups: groups that have messages; groups_ready: those that can be claimed
--          from. oldest_ready_ms: age of the oldest of the first ready messages of each priority.
local COUNTERS = {'deduplicated', 'delivered', 'acked', 'nacked', 'timed_out', 'unclaimed',
  'expired', 'dead_lettered', 'redriven', 'cancelled', 'purged'}

if not born then return {cmsgpack.pack({'unknown', now, {}})} end

local answer = {}
local function tell(name, value)
  answer[#answer + 1] = name
  answer[#answer + 1] = value
end

local oldest_at = now
local function look_at(id)
  if id then oldest_at = math.min(oldest_at, read_state(call('HGET', k.states, id)).pushed_at) end
end
for priority = 0, 9 do
  local from, to = place_of(priority, 0), place_of(priority, SPAN - 1)
  look_at(call('ZRANGEBYSCORE', k.ready, from, to, 'LIMIT', 0, 1)[1])
  local group = call('ZRANGEBYSCORE', k.turns, from, to, 'LIMIT', 0, 1)[1]
  if group then look_at((members().first(group))) end
end

local ready, grouped, in_flight =
  call('ZCARD', k.ready), call('ZCARD', k.grouped), call('ZCARD', k.in_flight)
tell('born_at', tonumber(born))
tell('ready', ready)
tell('grouped', grouped)
tell('in_flight', in_flight)
tell('delayed', call('HLEN', k.states) - ready - grouped - in_flight)
tell('dead', call('ZCARD', k.dead))
tell('groups', call('HLEN', k.groups))
tell('groups_ready', call('ZCARD', k.turns))
tell('oldest_ready_ms', now - oldest_at)
tell('requests_remembered', call('HLEN', k.requests_0) + call('HLEN', k.requests_1))
for i, value in ipairs(call('HMGET', k.meta, unpack(COUNTERS))) do
  tell(COUNTERS[i], tonumber(value) or 0)
end
local counted = call('HMGET', k.meta, 'sequence', 'redriven')  -- a redrive takes a number as well
tell('pushed', (counted[1] or 0) - (counted[2] or 0))
for i, field in ipairs(CONFIG_FIELDS) do tell('config.' .. field, config_values[i]) end
return {cmsgpack.pack({'ok', now, answer})}
