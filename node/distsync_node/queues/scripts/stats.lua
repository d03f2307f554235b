-- stats: how much there is in which state, what has happened so far, the configuration; reads only
--
-- KEYS: meta states ready turns grouped groups delayed in_flight dead requests_0 requests_1
-- lib: clock state config groups
--
-- ARGV[1]  {}
--
-- returns  {{'ok', now, {name, value, ...}}} | {{'unknown', now, {}}}
--          ready, grouped, delayed, in_flight, dead: messages; grouped: those that wait in a group,
--          ready or not. groups: groups that have messages; groups_ready: those that can be claimed
--          from. oldest_ready_ms: age of the oldest of the first ready messages of each priority.
local COUNTERS = {'pushed', 'deduplicated', 'delivered', 'acked', 'nacked', 'timed_out', 'unclaimed',
  'expired', 'dead_lettered', 'redriven', 'cancelled', 'purged'}

local known = call('HGET', meta, 'born')
if not known then return {cmsgpack.pack({'unknown', now, {}})} end

local answer = {}
local function tell(name, value)
  table.insert(answer, name)
  table.insert(answer, value)
end

local oldest_at = now
local function look_at(id)
  local packed = id and call('HGET', states, id)
  if packed then oldest_at = math.min(oldest_at, read_state(packed).pushed_at) end
end
for priority = 0, MAX_PRIORITY do
  local from, to = place_of(priority, 0), place_of(priority, SPAN - 1)
  look_at(call('ZRANGEBYSCORE', ready, from, to, 'LIMIT', 0, 1)[1])
  local group = call('ZRANGEBYSCORE', turns, from, to, 'LIMIT', 0, 1)[1]
  if group then look_at((group_head(group))) end
end

tell('born_at', tonumber(known))
tell('ready', call('ZCARD', ready))
tell('grouped', call('ZCARD', grouped))
tell('in_flight', call('ZCARD', in_flight))
tell('delayed', call('HLEN', states) - call('ZCARD', ready) - call('ZCARD', grouped)
  - call('ZCARD', in_flight))
tell('dead', call('ZCARD', dead))
tell('groups', call('HLEN', groups))
tell('groups_ready', call('ZCARD', turns))
tell('oldest_ready_ms', now - oldest_at)
tell('requests_remembered', call('HLEN', requests_0) + call('HLEN', requests_1))
for i, value in ipairs(call('HMGET', meta, unpack(COUNTERS))) do
  tell(COUNTERS[i], tonumber(value) or 0)
end
for field, default in pairs(CONFIG_DEFAULTS) do
  tell('config.' .. field, tonumber(call('HGET', meta, field)) or default)
end
return {cmsgpack.pack({'ok', now, answer})}
