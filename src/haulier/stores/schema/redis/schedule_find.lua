-- Schedules in the order of their names: one, or those that follow a name. Keys: those of schedules.

return run(function()
  local first, last, limit = arg(), arg(), number()
  local rows = {}
  for _, name in ipairs(call('ZRANGEBYLEX', key('schedules'), first, last, 'LIMIT', 0, limit)) do
    rows[#rows + 1] = schedule_row(name)
  end
  return rows
end)
