-- All limits, each with who changed it, when, whether it stands as declared, and how many jobs count
-- against one that is for all. Keys: limits, limit:<name>, used:<limit>.

return run(function()
  local rows, flat = {}, call('HGETALL', key('limits'))
  for i = 1, #flat, 2 do
    local name = flat[i]
    if flat[i + 1] ~= '' then
      local h = call('HMGET', key('limit:' .. name), 'by', 'at', 'own')
      rows[#rows + 1] = {flat[i + 1], h[1], h[2], h[3], call('HGET', key('used:' .. name), '') or '0'}
    end
  end
  return rows
end)
