-- Ticks of a schedule, those between two; the latest first, or not. Keys: those of schedules.

return run(function()
  local name, from, to, limit, backwards = arg(), arg(), arg(), number(), number()
  if backwards == 1 then
    return call('ZREVRANGEBYSCORE', ticks_key(name), to, from, 'LIMIT', 0, limit)
  end
  return call('ZRANGEBYSCORE', ticks_key(name), from, to, 'LIMIT', 0, limit)
end)
