-- The queue's configuration, one packed field of `meta`. Absent: the defaults given here.
-- gives: born (false = there is no such queue), a local per field, requests_packed
--
-- max_length        messages, dead letters not counted; 0 = no limit
-- max_deliveries    the last failed one makes a dead letter; 0 = no limit
-- dedupe_window_ms
-- ttl_ms            of messages pushed without one; 0 = for ever
-- rate_count        claims per rate_per_ms, and so many saved up; 0 = no limit
-- paused            1 = pop gives nothing
local born, config_packed, requests_packed =
  unpack(call('HMGET', k.meta, 'born', 'config', 'requests'))
local max_length, max_deliveries, dedupe_window_ms, ttl_ms, rate_count, rate_per_ms, paused =
  0, 10, 300000, 0, 0, 1000, 0
if config_packed then
  max_length, max_deliveries, dedupe_window_ms, ttl_ms, rate_count, rate_per_ms, paused =
    cmsgpack.unpack(config_packed)
end
