-- Remove a schedule with its ticks; whether there was one. Keys: those of schedules.

return run(function()
  though_full()
  local name, event, by = arg(), arg(), arg()
  local h = call('HMGET', schedule_key(name), 'id', 'queue', 'kind')
  if not h[1] then return 0 end
  for _, member in ipairs(call('ZRANGE', ticks_key(name), 0, -1)) do
    local job = job_of_tick(member)
    if job then call('HDEL', key('ticked'), job) end
  end
  call('DEL', schedule_key(name), ticks_key(name))
  call('ZREM', key('schedules'), name)
  call('ZREM', key('ticking'), name)
  say_schedule(event, h[1], h[2], h[3], by)
  return 1
end)
