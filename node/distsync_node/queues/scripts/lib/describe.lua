-- A message as get, peek and list tell it.
-- needs: now, state.lua
-- gives: phase_of, describe
local function phase_of(s)
  if s.token ~= '' and now < s.deadline then return 'in_flight' end
  if s.due_at > now then return 'delayed' end
  return 'ready'
end

local function describe(id, s, phase, died_at)
  return {id, phase, priority_of(s.place), s.group, s.size, s.deliveries, s.pushed_at, s.due_at,
    s.expires_at, s.deadline, died_at or 0}
end
