-- The configuration of a queue: fields of `meta`; one that is absent has the default given here.
-- gives: CONFIG_DEFAULTS, config_number
local CONFIG_DEFAULTS = {
  max_length = 0,              -- messages, dead letters not counted; 0 = no limit
  max_deliveries = 10,         -- the last failed one makes a dead letter; 0 = no limit
  dedupe_window_ms = 300000,
  ttl_ms = 0,                  -- of messages pushed without one; 0 = for ever
  rate_count = 0,              -- claims per rate_per_ms; 0 = no limit
  rate_per_ms = 1000,
  paused = 0,
}

local function config_number(field, stored)
  return tonumber(stored) or CONFIG_DEFAULTS[field]
end
