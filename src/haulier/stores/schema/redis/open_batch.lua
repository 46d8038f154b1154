-- Insert a head that its producer expands, with its first items. Keys: those of inserts.

return run(function()
  local sealed, policy = number(), read_policy()
  local top, jobs = read_jobs(), read_jobs()
  local head = top[1]
  if mark_new(top) then judge(top) end
  if head.instead then return {0, instead_of(top)} end
  mark_new(jobs)
  if not head.new then
    local any = false
    for _, job in ipairs(jobs) do any = any or job.new end
    if any then check_open(jobs) end
    if sealed == 1 and call('EXISTS', batch_key(head.id)) == 0 then
      refuse('missing', '', head.id)
    end
  end
  if head.new then add_batch(head.id, policy, 0) end
  local new = write_named(top, RUNNING)
  write_jobs(jobs, PENDING)
  if sealed == 1 then
    call('HSET', batch_key(head.id), 'sealed', 1)
    settle_done(head.id)
  end
  return {new, {}}
end)
