-- The first job of each line: its queue, and since when it has been due.
-- Keys: counts, ready:<queue>:<kind>, job:<id>.

return run(function()
  local found = {}
  for _, field in ipairs(call('HKEYS', key('counts'))) do
    local queue, kind, state = string.match(field, '^(.-):(.-):%d:(%d)$')
    local first = state == '0' and call('ZRANGE', key('ready:' .. queue .. ':' .. kind), 0, 0)[1]
    if first then
      found[#found + 1] = queue
      found[#found + 1] = call('HGET', job_key(id_of(first)), 'run_at')
    end
  end
  return found
end)
