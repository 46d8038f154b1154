-- Worker incarnations: what becomes of the jobs of one that ended.
-- Keys: worker:<id>, worker:health:<id>, workers, alive, ended, running:<worker>, and those of moving.

-- What the loss of its worker comes to for a job is decided by the domain; LOSSES holds its answers.
local function lose(job, regressed)
  if regressed then
    apply(job, 'give_back')
    return
  end
  local loss = LOSSES[job.on_lost + 1][math.min(job.lost, #LOSSES[1] - 1) + 1]
  local err = '{"type":"WorkerLost","message":"' .. loss.message .. '","traceback":"","attempt":'
    .. job.attempt .. '}'
  apply(job, loss.move, loss.delay, nil, err, 'WorkerLost')
end

-- End an incarnation for good and release one slice of its jobs. It stays among those that a sweep
-- looks at until it holds none.
local function release_jobs(worker)
  local at = key('worker:' .. worker)
  if call('EXISTS', at) == 0 then
    call('ZREM', key('alive'), worker)
    return 0, false
  end
  if call('HSETNX', at, 'ended', now) == 1 then
    call('ZADD', key('ended'), now, worker)
    call('ZADD', key('alive'), 0, worker)
    call('DEL', key('worker:health:' .. worker))
  end
  local regressed = call('HEXISTS', at, 'regressed') == 1
  local ids = call('ZRANGE', key('running:' .. worker), 0, LOST_AT_ONCE - 1)
  for _, id in ipairs(ids) do lose(look(id), regressed) end
  local more = call('EXISTS', key('running:' .. worker)) == 1
  if not more then call('ZREM', key('alive'), worker) end
  return #ids, more
end
