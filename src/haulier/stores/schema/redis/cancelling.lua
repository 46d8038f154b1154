-- Cancel jobs or request it. Keys: job:<id>, batch:<id>, cancels:<worker>, and those of slices.

-- Ids and states by turns, and the heads whose batches are to be drained.
local function stop_jobs(ids)
  local states, heads, touched = {}, {}, {}
  local function collect()
    for _, each in ipairs(write_ledger()) do touched[#touched + 1] = each end
  end
  for _, id in ipairs(ids) do
    local job = look(id)
    if job then
      if is_head(job.role) and job.state <= RUNNING then
        collect()
        begin_cancel(id, BY_REQUEST)
        heads[#heads + 1] = id
      end
      if job.state == PENDING then
        drop(job)
        job.state = CANCELLED
      elseif job.state == RUNNING and (not is_head(job.role) or job.worker) and job.cancel == 0 then
        call('HSET', job_key(id), 'cancel', REQUESTED)
        call('SADD', key('cancels:' .. job.worker), id)
        moved('cancel_requested', job, RUNNING, RUNNING)
      end
      states[#states + 1] = id
      states[#states + 1] = job.state
    end
  end
  collect()
  follow_up(touched)
  return states, heads
end
