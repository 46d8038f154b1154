-- The worker incarnations that are remembered, the youngest first. Keys: workers, worker:<id>.

return run(function()
  local rows = {}
  for _, id in ipairs(call('ZREVRANGE', key('workers'), 0, -1)) do
    local h = call('HMGET', key('worker:' .. id), 'host', 'pid', 'queues', 'kinds', 'slots',
      'started', 'renewed', 'expires', 'ended')
    h[10] = id
    h[11] = (not h[9] and tonumber(h[8]) > now) and 1 or 0
    h[9] = false
    rows[#rows + 1] = h
  end
  return rows
end)
