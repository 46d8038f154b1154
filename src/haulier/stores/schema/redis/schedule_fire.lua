-- Record ticks, enqueue their jobs and move on, each schedule if it still has the revision that was
-- read; what became of each, and heads whose batches are to be drained.
-- Keys: those of schedules, inserts and cancelling.

local heads = {}

local function read_firing()
  local firing = {name = arg(), revision = arg(), following = optional(), overlap = number(),
    manual = number(), ticks = {}}
  for i = 1, number() do
    local tick = {tick = arg(), since = optional()}
    if number() == 1 then
      tick.policy = read_policy()
      tick.jobs = read_jobs()
    end
    firing.ticks[i] = tick
  end
  return firing
end

local function is_known(name, tick)
  return #call('ZRANGEBYSCORE', ticks_key(name), tick, tick, 'LIMIT', 0, 1) > 0
end

local function record(firing, tick, state, job)
  local member = table.concat({tick.tick, NOW, state, tick.since or '-', job or '-'}, ' ')
  call('ZADD', ticks_key(firing.name), tick.tick, member)
  if job then call('HSET', key('ticked'), job, firing.name .. ' ' .. tick.tick) end
  firing.told[#firing.told + 1] = member
end

local function is_active(id)
  local state = id and call('HGET', job_key(id), 'state')
  return state and tonumber(state) <= RUNNING
end

local function enqueue(tick)
  mark_new(tick.jobs)
  local job = tick.jobs[1]
  if job.new and job.run.role == HEAD then add_batch(job.id, tick.policy, 1) end
  write_jobs(tick.jobs, PENDING)
  return job.id
end

local function do_tick(firing, tick)
  if is_known(firing.name, tick.tick) then return end
  if not tick.jobs then return record(firing, tick, MISSED) end
  if firing.overlap ~= ALLOW_OVERLAP and is_active(firing.last_job) then
    if firing.overlap == SKIP_OVERLAP then return record(firing, tick, OVERLAPPED) end
    local _, stopped = stop_jobs({firing.last_job})
    for _, id in ipairs(stopped) do heads[#heads + 1] = id end
  end
  firing.last_job = enqueue(tick)
  record(firing, tick, firing.manual == 1 and MANUAL or FIRED, firing.last_job)
end

-- Let go of what nobody needs any more: done, and not among the latest. Two go for each that comes.
local function forget(firing)
  local at, name = ticks_key(firing.name), firing.name
  local surplus, left = call('ZCARD', at) - KEPT_TICKS, 2 * #firing.told
  if surplus <= 0 then return end
  for _, member in ipairs(call('ZRANGE', at, 0, math.min(surplus, LOOKED_THROUGH) - 1)) do
    if left == 0 then return end
    local job = job_of_tick(member)
    if not is_active(job) then
      left = left - 1
      call('ZREM', at, member)
      if job then call('HDEL', key('ticked'), job) end
    end
  end
end

local function fire(firing)
  local at = schedule_key(firing.name)
  local h = call('HMGET', at, 'revision', 'last_job')
  if h[1] ~= firing.revision then return '' end
  firing.told, firing.last_job = {}, h[2] or nil
  for _, tick in ipairs(firing.ticks) do do_tick(firing, tick) end
  call('HINCRBY', at, 'revision', 1)
  if firing.last_job then call('HSET', at, 'last_job', firing.last_job) end
  set_next(firing.name, firing.following)
  forget(firing)
  return firing.told
end

return run(function()
  local firings, answers = {}, {}
  for i = 1, number() do firings[i] = read_firing() end
  for i, firing in ipairs(firings) do answers[i] = fire(firing) end
  return {answers, heads}
end)
