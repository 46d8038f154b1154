-- What waits: when the first job of each line was ready, how many jobs there are, and how many entries
-- of inboxes were refused. Of lanes only those next in turn are asked.
-- Keys: counts, top, below, ready:<queue>:<kind>, open:<queue>:<kind>, lane:<queue>:<kind>:<batch>:<key>,
-- scheduled, job:<id>, rejected.

return run(function()
  local oldest
  local function at(id)
    local run_at = tonumber(call('HGET', job_key(id), 'run_at'))
    if not oldest or run_at < oldest then oldest = run_at end
  end
  for _, field in ipairs(call('HKEYS', key('counts'))) do
    local queue, kind, state = string.match(field, '^(.-):(.-):%d:(%d)$')
    if state == '0' then
      local first = call('ZRANGE', key('ready:' .. queue .. ':' .. kind), 0, 0)[1]
      if first then at(id_of(first)) end
      for _, lane in ipairs(call('ZRANGE', key('open:' .. queue .. ':' .. kind), 0, 99)) do
        at(id_of(call('ZRANGE', key('lane:' .. lane), 0, 0)[1]))
      end
    end
  end
  local due = call('ZRANGEBYSCORE', key('scheduled'), '-inf', now, 'LIMIT', 0, 1)[1]
  if due then at(due) end
  local jobs = call('ZCARD', key('top')) + call('ZCARD', key('below'))
  return {oldest and whole(oldest) or '', jobs, call('HGETALL', key('counts')),
    call('LLEN', key('rejected')), call('HGET', key('history'), 'schema') or ''}
end)
