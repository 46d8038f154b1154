-- Whole batches at once: cancel, retry, pause, resume, delete, in slices that block nobody for long.
-- A batch with such work under way is marked `draining`. Whoever began it goes on until it is done;
-- if that process dies, the next sweep of any worker takes it up.
-- Keys: items:<batch>, failed:<batch>, parked:<batch>, batch:<id>, draining, and those of its jobs.

local slices = {}

-- Account for a job that is removed with all that was kept beside it.
local function remove(job, uncounted, with_periods)
  if job.state == PENDING then step_out(job) else unfile(job) end
  flows.forget(job)
  if with_periods then forget_names(job.id, job.uniq) else release_ended(job.id, job.uniq) end
  call('DEL', job_key(job.id), key('payload:' .. job.id), key('errors:' .. job.id),
    key('steps:' .. job.id), key('lines:' .. job.id))
  if job.role >= ITEM then
    call('ZREM', key('below'), job.id)
    call('ZREM', key('items:' .. job.batch), job.id)
  else
    call('ZREM', key('top'), job.id)
  end
  moved('delete', job, job.state, nil, nil, nil, uncounted)
end

-- A pending job is cancelled. `err`: why, as JSON, and its class.
local function drop(job, err, class)
  step_out(job)
  call('HSET', job_key(job.id), 'state', CANCELLED, 'finished', now)
  call('HDEL', job_key(job.id), 'gate')
  if err then call('HSET', job_key(job.id), 'error', err) end
  release_ended(job.id, job.uniq)
  file(job, CANCELLED)
  moved('drop', job, PENDING, CANCELLED, nil, class)
end

-- Walk over items from a cursor on; returns how many were moved, and where to go on, nil at the end.
local function walk(index, cursor, most, visit)
  local ids = call('ZRANGEBYSCORE', index, '(' .. whole(cursor), '+inf', 'WITHSCORES', 'LIMIT', 0, LOOKED_AT)
  local count = 0
  for i = 1, #ids, 2 do
    if visit(ids[i]) then count = count + 1 end
    if count >= most then return count, tonumber(ids[i + 1]) end
  end
  if #ids < 2 * LOOKED_AT then return count, nil end
  return count, tonumber(ids[#ids])
end

local function is_pending(id) return call('HGET', job_key(id), 'state') == '0' end

slices[CANCELLING] = function(batch, cursor)
  local telling = num(call('HGET', batch_key(batch), 'telling'))
  if telling > 0 then
    local following = tell_running(batch, cursor)
    if following or telling == AFTER then return 0, following end
    call('HDEL', batch_key(batch), 'telling')
    return 0, 0
  end
  local count, following = walk(key('items:' .. batch), cursor, SLICE, function(id)
    if is_pending(id) then
      drop(look(id))
      return true
    end
  end)
  write_ledger()
  if not following then
    -- Items claimed between two slices are running by now.
    following = tell_running(batch, 0)
    if following then tell_later(batch, AFTER, following) end
  end
  return count, following
end

slices[RETRYING] = function(batch, cursor)
  local h = call('HMGET', batch_key(batch), 'retry_type', 'retry_left')
  local left = tonumber(h[2] or nil)
  local start = h[1] and '{"type":' .. h[1] .. ','
  local count, following = walk(key('failed:' .. batch), cursor, math.min(SLICE, left or SLICE), function(id)
    if start and string.sub(call('HGET', job_key(id), 'error') or '', 1, #start) ~= start then
      return false
    end
    local job = look(id)
    if job.role ~= ITEM then return false end
    unfile(job)
    call('HSET', job_key(id), 'state', PENDING, 'run_at', now)
    call('HDEL', job_key(id), 'attempt', 'lost', 'finished', 'cancel', 'gate')
    job.run_at, job.gate, job.attempt = now, 0, 0
    stand(job, true, false)
    moved('requeue', job, FAILED, PENDING)
    if job.children then flows.back[#flows.back + 1] = id end
    return true
  end)
  if left then
    call('HSET', batch_key(batch), 'retry_left', left - count)
    if left - count <= 0 then following = nil end
  end
  follow_up(write_ledger())
  return count, following
end

slices[PAUSING] = function(batch, cursor)
  return walk(key('items:' .. batch), cursor, SLICE, function(id)
    if not is_pending(id) then return false end
    local job = look(id)
    if job.gate ~= LET_IN and job.gate ~= 0 then return false end
    if not leave_line(job) then return false end
    if job.gate == LET_IN then call('HINCRBY', batch_key(batch), 'let_in', -1) end
    park(job)
    return true
  end)
end

-- Items that stood in the line before there was a gate are parked, and of those that were let in as many
-- as there were when they became too many. Claims take none of either.
slices[LIMITING] = function(batch, cursor)
  local count, following = walk(key('items:' .. batch), cursor, SLICE, function(id)
    if not is_pending(id) then return false end
    return take_back(look(id))
  end)
  local h = call('HMGET', batch_key(batch), 'excess', 'short')
  if h[2] and num(h[1]) <= 0 then following = nil end
  -- Some that were let in have been claimed.
  if not following then call('HDEL', batch_key(batch), 'excess', 'short') end
  let_in(batch)
  return count, following
end

slices[RESUMING] = function(batch)
  local count, laned = admit_parked(batch, SLICE)
  local opened = limits.known() and lanes.unshut(batch, SLICE) or 0
  if count + laned + opened > 0 then wakes_ready = true end
  if count + laned < SLICE and opened < SLICE then return count + laned, nil end
  return count + laned, 0
end

local function delete_items(batch, uncounted, with_periods)
  local ids = call('ZRANGE', key('items:' .. batch), 0, DELETED_AT_ONCE - 1)
  local highest = 0
  for _, id in ipairs(ids) do
    local job = look(id)
    highest = math.max(highest, job.lease)
    remove(job, uncounted, with_periods)
  end
  return #ids, highest
end

-- Remove items, with the last ones the head too. The batch's counters go with it.
local function delete_slice(batch, with_periods)
  local inner = innermost(batch)
  local count = delete_items(inner, true, with_periods)
  if count == DELETED_AT_ONCE then
    write_ledger()
    return count, 0
  end
  remove(look(inner), true, with_periods)
  forget_batch(inner)
  write_ledger()
  return count, inner ~= batch and 0 or nil
end

slices[DELETING] = function(batch) return delete_slice(batch, true) end
slices[PRUNING] = function(batch) return delete_slice(batch, false) end

-- Remove items whose head makes them anew: with the same ids, so their leases go on.
slices[RESTARTING] = function(batch)
  local inner = innermost(batch)
  local count, highest = delete_items(inner, inner ~= batch, true)
  local more = count == DELETED_AT_ONCE
  if inner ~= batch and not more then
    local top = look(inner)
    highest = math.max(highest, top.lease)
    remove(top, top.batch ~= batch, true)
    forget_batch(inner)
    more = true
  end
  write_ledger()
  if highest > num(call('HGET', batch_key(batch), 'leases')) then
    call('HSET', batch_key(batch), 'leases', highest)
  end
  return count, more and 0 or nil
end

local function gate_again(b) set_gated(b.id, b.paused > 0 or b.limited) end

-- The items are gone: the head is pending again and will expand.
local function restart(batch)
  local b, top = look_at_batch(batch), look(batch)
  call('HSET', batch_key(batch), 'sealed', 0, 'cancel', 0)
  set_owed(batch, 1)
  call('HDEL', batch_key(batch), 'started', 'finish_job')
  gate_again(b)
  unfile(top)
  call('HSET', job_key(batch), 'state', PENDING, 'run_at', now)
  call('HDEL', job_key(batch), 'attempt', 'lost', 'finished', 'cancel', 'gate')
  moved('requeue', {id = batch, attempt = 0, lease = top.lease, queue = top.queue, kind = top.kind,
    role = top.role, batch = top.batch}, top.state, PENDING)
  top.run_at, top.gate = now, 0
  flows.wait_again(top)
  stand(top, true, false)
  if top.children then flows.back[#flows.back + 1] = batch end
  follow_up(write_ledger())
end

-- A settled head runs again, because some of its items do.
local function reopen_head(top, b)
  if top.batch then
    local outer = look(top.batch)
    if outer.state ~= RUNNING then reopen_head(outer, look_at_batch(top.batch)) end
  end
  retake(top.id, top.uniq)
  unfile(top)
  call('HSET', job_key(top.id), 'state', RUNNING)
  call('HDEL', job_key(top.id), 'finished', 'result', 'error', 'worker')
  call('HSET', batch_key(top.id), 'cancel', 0)
  set_owed(top.id, 1)
  call('HDEL', batch_key(top.id), 'finish_job')
  gate_again(b)
  moved('reopen', top, top.state, RUNNING)
  if top.children then flows.back[#flows.back + 1] = top.id end
  write_ledger()
end

local check_around

local function check_reopen(top, b)
  if top.state == PENDING or b.sealed == 0 then
    refuse('state', 'this batch was never completely filled; start it anew')
  end
  if not can_retake(top.id, top.uniq) then
    refuse('state', 'another batch holds the unique name of this one by now')
  end
  if top.batch then check_around(top.batch) end
end

-- Whether a batch may run again because an item of it does, with all that lies around it.
check_around = function(batch)
  local b, top = look_at_batch(batch), look(batch)
  local going = b.draining == DELETING or b.draining == PRUNING or b.draining == RESTARTING
  if going or (b.cancel > 0 and top.state == RUNNING) then
    refuse('state', "a cancel or delete of this item's batch is still under way")
  end
  if top.state ~= RUNNING then check_reopen(top, b) end
end

-- One slice of the work under way; whether there is more of it. How far it has come is kept with the
-- batch, not with the caller: several may be at it, and what is under way may become something else.
local function drain(batch)
  local h = call('HMGET', batch_key(batch), 'draining', 'drained')
  local under_way = num(h[1])
  if under_way == 0 then
    call('SREM', key('draining'), batch)
    return false
  end
  local count, following = slices[under_way](batch, num(h[2]))
  if call('EXISTS', batch_key(batch)) == 0 then return false end
  call('HINCRBY', batch_key(batch), 'moved', count)
  if following then
    call('HSET', batch_key(batch), 'drained', following)
    return true
  end
  if (under_way == CANCELLING or under_way == PAUSING or under_way == RESUMING or under_way == LIMITING)
      and go_on_within(batch, drain) then
    return true
  end
  end_slices(batch)
  -- A pause that came in the midst of a retry follows now.
  if under_way == RETRYING and num(call('HGET', batch_key(batch), 'paused')) > 0 then
    local count_so_far = call('HGET', batch_key(batch), 'moved')
    begin_slices(batch, PAUSING)
    call('HSET', batch_key(batch), 'moved', count_so_far)
    return true
  end
  if under_way == RESTARTING then restart(batch) else settle_done(batch) end
  return false
end

-- Do the first slice of each at once; those with more to do.
local function first_slices(batches)
  local more = {}
  for _, batch in ipairs(batches) do
    if drain(batch) then more[#more + 1] = batch end
  end
  return more
end
