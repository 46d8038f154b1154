-- A page of the rows of events; where to go on, or false at the end. Keys: events.

return run(function()
  local from, most, most_bytes = arg(), number(), number()
  local rows, size = {}, 0
  while true do
    local found = call('XRANGE', key('events'), '(' .. from, '+', 'COUNT', EVENT_ROWS)
    for _, row in ipairs(found) do
      if #rows == most or size > most_bytes then return {rows, from} end
      rows[#rows + 1] = row
      from = row[1]
      size = size + #row[2][20]
    end
    if #found < EVENT_ROWS then return {rows, false} end
  end
end)
