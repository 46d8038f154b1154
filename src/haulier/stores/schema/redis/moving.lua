-- Applying transitions: each to the job that still holds its lease, with all it brings along.
-- Keys: job:<id>, errors:<id>, running:<worker>, cancels:<worker>, active:<batch>, finished:<state>:<kind>,
-- results:<kind>, dead, failed:<batch>, batch:<id>, and where a job that becomes pending stands.

local lost, handed_over, ended = {}, {}, {}

-- Whether a claim stopped looking before the end of what it may find something in.
local unlooked = false

-- After a loss of history two workers may hold one job by the same number, until the loss is noticed:
-- so whoever names its worker is asked whether it is that one.

-- Completions are nine of ten moves, and alike: one group of them has queue, kind, role, batch and
-- worker in common, so that what they change beside their jobs is changed by one command each.
local function complete_group()
  local queue, kind, role, batch, worker = arg(), arg(), number(), optional(), optional()
  local g
  local ids, filed, results = {}, {}, {}
  local keys, limited = {}, not is_head(role) and limits.of(queue, kind)
  for _ = 1, number() do
    local ticket, id, lease, attempt, result = arg(), arg(), arg(), arg(), arg()
    local at = job_key(id)
    local h = call('HMGET', at, 'state', 'lease', 'cancel', 'error', 'uniq', 'worker', 'key', 'children')
    if h[1] == '1' and h[2] == lease and (not worker or h[6] == worker) then
      call('HSET', at, 'state', 'COMPLETED', 'finished', NOW, 'result', result)
      if h[3] or h[4] then call('HDEL', at, 'cancel', 'error') end
      if h[3] and worker then call('SREM', key('cancels:' .. worker), id) end
      if h[5] then release_ended(id, h[5]) end
      if h[8] then flows.ended[#flows.ended + 1] = id end
      g = g or group('complete', queue, kind, role, batch, RUNNING, COMPLETED, worker)
      add(g, id, ',' .. attempt .. ',' .. lease)
      ids[#ids + 1] = id
      if limited and h[7] then keys[#keys + 1] = h[7] end
      filed[#filed + 1] = NOW
      filed[#filed + 1] = id
      if result ~= 'null' and role == SINGLE then
        results[#results + 1] = NOW
        results[#results + 1] = id
      end
    else
      lost[#lost + 1] = ticket
    end
  end
  if not g then return end
  if limited then limits.finish(queue, kind, #ids, keys, false) end
  if worker then many('ZREM', key('running:' .. worker), ids) end
  if batch then many('ZREM', key('active:' .. batch), ids) end
  if role < ITEM then many('ZADD', finished_key(COMPLETED, kind), filed) end
  many('ZADD', key('results:' .. escaped(kind)), results)
end

-- The errors of a job's last claims. A generation may leave many numbers out, so that how many there
-- are counts as well.
local function record(job, err)
  local at = key('errors:' .. job.id)
  call('HSET', at, job.lease, err)
  if job.lease <= KEPT_ERRORS then return end
  local leases = call('HKEYS', at)
  for i, lease in ipairs(leases) do leases[i] = tonumber(lease) end
  table.sort(leases)
  for i, lease in ipairs(leases) do
    local floor = math.floor(job.lease / GENERATION) * GENERATION
    local old = lease > floor and lease <= job.lease - KEPT_ERRORS
    if old or i <= #leases - KEPT_ERRORS then call('HDEL', at, lease) end
  end
end

-- Whether the batch of an item is cancelled, though the item itself was not told: it was claimed
-- while the cancel went through the batch slice by slice, and passed by.
local function is_doomed(job)
  return job.batch ~= nil and num(call('HGET', batch_key(job.batch), 'cancel')) > 0
end

local function back_to_pending(job, rule, delay)
  job.lost = job.lost + rule.lost
  if rule.lost > 0 then call('HSET', job_key(job.id), 'lost', job.lost) end
  if delay then
    job.run_at = now + delay
    call('HSET', job_key(job.id), 'run_at', job.run_at)
  end
  stand(job, not delay or delay == 0, job.lost >= ALONE_AFTER)
end

-- A job that is running under the lease it was claimed by goes its way. `err` is JSON without what
-- only the store knows.
local function apply(job, move, delay, result, err, class)
  local rule = RULES[move]
  local target = rule.target
  if rule.yields_to_cancel and (job.cancel > 0 or is_doomed(job)) then
    move, target = 'cancel', CANCELLED
  end
  local at, yielded = job_key(job.id), target ~= rule.target
  if err then
    err = as_kept(err, job.lease, job.worker)
    call('HSET', at, 'error', err)
    if rule.records then record(job, err) end
  end
  local worker, old_lease = job.worker, job.lease
  stop_running(job)
  if not is_head(job.role) and limits.of(job.queue, job.kind) then
    local failed = nil
    if move == 'fail' or move == 'retry' then failed = true end
    limits.finish(job.queue, job.kind, 1, {job.key}, failed)
  end
  if not yielded then
    job.attempt = job.attempt + rule.attempt
    job.lease = job.lease + rule.lease
  end
  call('HSET', at, 'state', target, 'attempt', job.attempt, 'lease', job.lease)
  call('HDEL', at, 'worker', 'waiter')
  if target ~= RUNNING then call('HDEL', at, 'cancel') end
  if target == PENDING then
    back_to_pending(job, rule, delay)
  elseif target > RUNNING then
    if not yielded and rule.lost > 0 then call('HSET', at, 'lost', job.lost + rule.lost) end
    call('HDEL', at, 'gate')
    call('HSET', at, 'finished', now)
    if result then call('HSET', at, 'result', result) end
    release_ended(job.id, job.uniq)
    file(job, target)
  end
  moved(move, job, RUNNING, target, worker, class)
  if is_head(job.role) then
    if move == 'hand_over' then
      call('HSET', batch_key(job.id), 'sealed', 1)
      handed_over[#handed_over + 1] = {batch = job.id, failures = 0}
    elseif target > RUNNING then
      ended[#ended + 1] = job.id
    end
  end
end

local function apply_one()
  local ticket, move, id, lease, worker = arg(), arg(), arg(), number(), optional()
  local delay, result, err, class = number(), optional(), optional(), optional()
  local job = look(id)
  if not job or job.state ~= RUNNING or job.lease ~= lease or (worker and job.worker ~= worker) then
    lost[#lost + 1] = ticket
    return
  end
  apply(job, move, delay, result, err, class)
end

-- After all transitions: what they mean for their batches; whether one settled, what is to drain.
local function conclude()
  if limits.known() and lanes.reopen() then unlooked = true end
  local touched = write_ledger()
  for _, batch in ipairs(ended) do begin_cancel(batch, BY_REQUEST) end
  for _, each in ipairs(handed_over) do touched[#touched + 1] = each end
  local settled, cut = follow_up(touched)
  for _, batch in ipairs(cut) do ended[#ended + 1] = batch end
  return settled, first_slices(ended)
end
