-- Move the first entries of an inbox into their queue, as they were judged meanwhile; how many. If
-- others have taken some of them, nothing happens. Keys: inbox:<queue>, rejected, those of inserts.

return run(function()
  local inbox, entries = key('inbox:' .. arg()), {}
  for i = 1, number() do entries[i] = {raw = arg(), refused = optional()} end
  local jobs = read_jobs()
  for i, raw in ipairs(call('LRANGE', inbox, 0, #entries - 1)) do
    if raw ~= entries[i].raw then return 0 end
    entries[i].there = true
  end
  if not entries[#entries].there then return 0 end
  -- A removal first: it is allowed when memory is short, and then so is the rest of the script.
  call('LTRIM', inbox, #entries, -1)
  for _, entry in ipairs(entries) do
    if entry.refused then call('LPUSH', key('rejected'), entry.refused) end
  end
  call('LTRIM', key('rejected'), 0, REJECTED_KEPT - 1)
  mark_new(jobs)
  write_jobs(jobs, PENDING)
  return #entries
end)
