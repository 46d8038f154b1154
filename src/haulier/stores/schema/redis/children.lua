-- A page of the jobs that wait for one, or have waited for it. Keys: job:<id>, children:<id>.

return run(function()
  local id, cursor, most, rows = arg(), arg(), number(), {}
  if call('EXISTS', job_key(id)) == 0 then refuse('missing', '', id) end
  for _, child in ipairs(call('ZRANGEBYSCORE', key('children:' .. id), '(' .. cursor, '+inf', 'LIMIT', 0,
    most)) do
    local row = row_of(child, job_key(child), true)
    row[#row + 1] = child
    rows[#rows + 1] = row
  end
  return rows
end)
