-- Close the breaker of a key, and forget what it counted; 0 if that was nothing.
-- Keys: rest:<limit>, circuit:<limit>, and those of lanes.

return run(function()
  local name, of_key, by = arg(), arg(), arg()
  local rest = call('ZSCORE', key('rest:' .. name), of_key)
  call('ZREM', key('rest:' .. name), of_key)
  call('HDEL', key('circuit:' .. name), of_key)
  limits.known()
  lanes.bring_due(lanes.held(of_key))
  wakes_ready = true
  if not rest or tonumber(rest) <= now then return 0 end
  say_of_nobody('breaker_reset', {name .. ' ' .. of_key}, by)
  return 1
end)
