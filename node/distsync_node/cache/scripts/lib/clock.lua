-- The only clock of the cache in Redis: that of Redis, in milliseconds.
-- gives: now
local now
do
  local time = call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
