-- The configuration by name, in the order in which it is packed.
-- needs: config.lua
-- gives: CONFIG_FIELDS, config_values
local CONFIG_FIELDS = {'max_length', 'max_deliveries', 'dedupe_window_ms', 'ttl_ms', 'rate_count',
  'rate_per_ms', 'paused'}
local config_values =
  {max_length, max_deliveries, dedupe_window_ms, ttl_ms, rate_count, rate_per_ms, paused}
