-- Receipts: the id of a message and the token it was claimed under, good until the deadline.
-- needs: now, state.lua
-- gives: sort_receipts
--
-- Returns the messages whose receipt is good, as lists of ids and states, and the indexes (from 0)
-- of the receipts that are stale. A receipt given twice counts once.
local function sort_receipts(ids, tokens)
  local good_ids, good_states, stale, given = {}, {}, {}, {}
  local packed = call('HMGET', k.states, unpack(ids))
  for i, id in ipairs(ids) do
    local s = packed[i] and read_state(packed[i])
    if not s or not is_claimed(s, tokens[i]) then
      stale[#stale + 1] = i - 1
    elseif not given[id] then
      given[id] = true
      good_ids[#good_ids + 1] = id
      good_states[#good_states + 1] = s
    end
  end
  return good_ids, good_states, stale
end
