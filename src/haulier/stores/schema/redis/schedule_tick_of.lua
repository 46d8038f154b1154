-- The tick that a job was enqueued for: its schedule and itself. Keys: those of schedules.

return run(function()
  local found = call('HGET', key('ticked'), arg())
  if not found then return {} end
  local name, tick = string.match(found, '^(%S+) (%S+)$')
  return {name, call('ZRANGEBYSCORE', ticks_key(name), tick, tick)[1]}
end)
