-- get: one message by its id; reads only
--
-- KEYS: meta states bodies dead dead_states dead_bodies
-- lib: clock config state describe
--
-- ARGV[1]  {id}
--
-- returns  {{'ok', now, {message}}, body}; message as in describe.lua
--          {{'unknown', now, {}}}
local id = unpack(cmsgpack.unpack(ARGV[1]))

local packed = call('HGET', k.states, id)
local s = packed and read_state(packed)
if s and (is_claimed(s, s.token) or not is_expired(s)) then
  return {cmsgpack.pack({'ok', now, {describe(id, s, phase_of(s))}}), call('HGET', k.bodies, id)}
end
packed = call('HGET', k.dead_states, id)
if packed then
  local message = describe(id, read_state(packed), 'dead', tonumber(call('ZSCORE', k.dead, id)))
  return {cmsgpack.pack({'ok', now, {message}}), call('HGET', k.dead_bodies, id)}
end
return {cmsgpack.pack({'unknown', now, {}})}
