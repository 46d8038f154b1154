-- Close the breaker of a key, and forget what it counted; 0 if that was nothing.
-- Keys: rest:<limit>, circuit:<limit>, and those of lanes.

return run(function()
  local name, of_key = arg(), arg()
  local rest = call('ZSCORE', key('rest:' .. name), of_key)
  call('ZREM', key('rest:' .. name), of_key)
  call('HDEL', key('circuit:' .. name), of_key)
  limits.known()
  lanes.bring_due(lanes.held(of_key))
  wakes_ready = true
  return rest and tonumber(rest) > now and 1 or 0
end)
