-- What running jobs say of themselves, each only while its lease holds. Keys: job:<id>, history.

return run(function()
  local any = false
  for _ = 1, number() do
    local id, lease, progress, message, heard = arg(), arg(), optional(), arg(), number()
    local h = call('HMGET', job_key(id), 'state', 'lease', 'cancel')
    if h[1] == '1' and h[2] == lease then
      any = true
      if progress then call('HSET', job_key(id), 'progress', progress) end
      -- The first character says whether there is a message, which may be empty.
      if message ~= '' then call('HSET', job_key(id), 'message', string.sub(message, 2)) end
      if heard == 1 and num(h[3]) == REQUESTED then
        call('HSET', job_key(id), 'cancel', HEARD)
        local job = look(id)
        moved('cancel_heard', job, RUNNING, RUNNING, job.worker)
      end
    end
  end
  write_ledger()
  if any then
    call('HINCRBY', key('history'), 'notes', 1)
    wakes_settled = true
  end
end)
