-- What is due, the longest overdue first, and when the next one is. Keys: those of schedules.

return run(function()
  local limit, rows = number(), {}
  local following = call('ZRANGEBYSCORE', key('ticking'), '(' .. NOW, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  for _, name in ipairs(call('ZRANGEBYSCORE', key('ticking'), '-inf', NOW, 'LIMIT', 0, limit)) do
    rows[#rows + 1] = schedule_row(name)
  end
  return {NOW, rows, following[1] and call('HGET', schedule_key(following[1]), 'next') or ''}
end)
