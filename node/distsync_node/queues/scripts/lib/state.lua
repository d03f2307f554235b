-- What is known of a message besides its body.
-- needs: now, config.lua
-- gives: SPAN, place_of, priority_of, read_state, new_state, write_state,
--        is_claimed, is_spent, is_expired
--
-- place       rank * SPAN + sequence: the lowest place is claimed first. rank = 9 - priority
-- size        bytes of the body
-- pushed_at   ms
-- expires_at  ms, 0 = never: not delivered from then on
-- due_at      ms: not delivered before
-- deliveries  claims so far that were not taken back by unclaim
-- token       second half of the receipt; '' = not claimed
-- deadline    ms: the receipt is good while now < deadline
-- group       '' = none
local SPAN = 2 ^ 49

local function place_of(priority, sequence)
  return (9 - priority) * SPAN + sequence
end

local function priority_of(place)
  return 9 - math.floor(place / SPAN)
end

local function read_state(packed)
  local place, size, pushed_at, expires_at, due_at, deliveries, token, deadline, group =
    cmsgpack.unpack(packed)
  return {place = place, size = size, pushed_at = pushed_at, expires_at = expires_at,
    due_at = due_at, deliveries = deliveries, token = token, deadline = deadline, group = group}
end

local new_state = cmsgpack.pack  -- of the fields in this order

local function write_state(s)
  return new_state(s.place, s.size, s.pushed_at, s.expires_at, s.due_at, s.deliveries, s.token,
    s.deadline, s.group)
end

local function is_claimed(s, token)
  return s.token ~= '' and s.token == token and now < s.deadline
end

-- Whether a claim that ends now without an ack makes a dead letter.
local function is_spent(s)
  return max_deliveries > 0 and s.deliveries >= max_deliveries
end

local function is_expired(s)
  return s.expires_at > 0 and s.expires_at <= now
end
