-- Events after a cursor, as rows of events that are alike. Keys: events, history.

return run(function()
  local epoch, seen, most = optional(), number(), number()
  local h = call('HMGET', key('history'), 'epoch', 'last')
  local last = num(h[2])
  local oldest = call('XRANGE', key('events'), '-', '+', 'COUNT', 1)[1]
  local before, at = last, 0
  if oldest then
    before = tonumber(string.match(oldest[1], '^%d+')) - tonumber(oldest[2][2])
    at = tonumber(oldest[2][4])
  end
  if not epoch then
    seen = before
  elseif epoch ~= h[1] or seen < before or seen > last then
    return {h[1], before, at, false}
  end
  local rows, count, from = {}, 0, seen
  while count < most do
    local found = call('XRANGE', key('events'), '(' .. whole(from), '+', 'COUNT', EVENT_ROWS)
    for _, row in ipairs(found) do
      rows[#rows + 1] = row
      count = count + tonumber(row[2][2])
      from = tonumber(string.match(row[1], '^%d+'))
      if count >= most then break end
    end
    if #found < EVENT_ROWS then break end
  end
  return {h[1], seen, at, rows}
end)
