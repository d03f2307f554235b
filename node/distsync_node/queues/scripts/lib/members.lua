-- Messages of groups as members of `grouped`, which is ordered by group and then by place.
-- needs: state.lua
-- gives: M.name, M.first

function M.name(s, id)
  return s.group .. '\0' .. string.format('%015.0f', s.place % SPAN) .. id
end

-- Returns the id of the message `skip` places behind the first that waits, and its member.
function M.first(group, skip)
  local member = call('ZRANGEBYLEX', k.grouped, '[' .. group .. '\0', '(' .. group .. '\1',
    'LIMIT', skip or 0, 1)[1]
  if not member then return nil end
  return string.sub(member, #group + 17), member
end
