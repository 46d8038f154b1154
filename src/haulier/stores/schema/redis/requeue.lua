-- Failed and cancelled jobs become pending again; others keep the state that is returned. Heads do so
-- when their old items are gone: these are returned too, to be drained. Everything is judged first.
-- Keys: job:<id>, batch:<id>, uniques, and those of slices.

local restarted, reopened = {}, {}

local function ended_badly(job) return job and (job.state == FAILED or job.state == CANCELLED) end

local function judge_head(id, outer)
  local b = look_at_batch(id)
  if b.own_expander == 0 then
    refuse('state', 'this batch was filled by its producer: retry its items instead')
  end
  if b.running + b.pending + b.unsettled > 0 then
    refuse('state', 'this batch still has items that are not finished')
  end
  if b.draining == DELETING or b.draining == PRUNING then
    refuse('state', 'this batch is being deleted')
  end
  if outer then check_around(outer) end
  restarted[id] = true
end

local function judge_item(batch)
  local b, top = look_at_batch(batch), look(batch)
  local going = b.draining == DELETING or b.draining == PRUNING or b.draining == RESTARTING
  if going or restarted[batch] or (b.cancel > 0 and top.state == RUNNING) then
    refuse('state', "a cancel or delete of this item's batch is still under way")
  end
  if top.state ~= RUNNING then
    check_reopen(top, b)
    reopened[batch] = true
  end
end

local function again(job)
  if job.batch then
    local top = look(job.batch)
    if top.state ~= RUNNING then reopen_head(top, look_at_batch(job.batch)) end
  end
  unfile(job)
  call('HSET', job_key(job.id), 'state', PENDING, 'run_at', now)
  call('HDEL', job_key(job.id), 'attempt', 'lost', 'finished', 'cancel', 'gate')
  job.run_at, job.gate, job.attempt = now, 0, 0
  flows.wait_again(job)
  stand(job, true, false)
  moved('requeue', job, job.state, PENDING)
  if job.children then flows.back[#flows.back + 1] = job.id end
  follow_up(write_ledger())
end

return run(function()
  local ids, states, heads = list(), {}, {}
  for _, id in ipairs(ids) do
    local job = look(id)
    if ended_badly(job) and not reopened[id] and can_retake(id, job.uniq) then
      if is_head(job.role) then judge_head(id, job.batch) elseif job.batch then judge_item(job.batch) end
    end
  end
  for _, id in ipairs(ids) do
    local job = look(id)
    if job then
      local state = job.state
      if ended_badly(job) and can_retake(id, job.uniq) then
        retake(id, job.uniq)
        if is_head(job.role) then
          if job.batch then
            local outer = look(job.batch)
            if outer.state ~= RUNNING then reopen_head(outer, look_at_batch(job.batch)) end
          end
          begin_slices(id, RESTARTING)
          -- What it lies within must not settle meanwhile.
          set_owed(id, 1)
          heads[#heads + 1] = id
        else
          again(job)
          state = PENDING
        end
      end
      states[#states + 1] = id
      states[#states + 1] = state
    end
  end
  return {states, heads}
end)
