-- Keep a schedule if its revision is the one that was read, 0 for none; whether it was done.
-- Keys: those of schedules.

return run(function()
  local name, id, revision, event = arg(), arg(), arg(), arg()
  local following, kind, queue, body, changed_by = optional(), arg(), arg(), arg(), arg()
  local at = schedule_key(name)
  if (call('HGET', at, 'revision') or '0') ~= revision then return 0 end
  call('HSET', at, 'id', id, 'revision', whole(tonumber(revision) + 1), 'kind', kind, 'queue', queue,
    'body', body, 'changed_by', changed_by, 'changed_at', NOW)
  call('ZADD', key('schedules'), 0, name)
  set_next(name, following)
  say_schedule(event, id, queue, kind, changed_by)
  -- Workers are woken as if there were jobs: some of them have to know when to tick.
  wakes_ready = true
  return 1
end)
