-- Where a job stands: in the line or a lane of it, scheduled, parked, alone, running, or finished; and the gates of
-- batches that may not run as fast as they could. A claim never meets a job that it must not take.
-- Keys: ready:<queue>:<kind>, scheduled, alone, parked:<batch>, gated, batch:<id>, job:<id>,
-- running:<worker>, cancels:<worker>, active:<batch>, failed:<batch>, dead, finished:<state>:<kind>,
-- results:<kind>.

local function by_rank(a, b)
  if a.rank ~= b.rank then return a.rank < b.rank end
  return a.place < b.place
end

local gates = {}

-- Whether the items of a batch have to wait to be let in.
local function is_gated(batch)
  local gated = gates[batch]
  if gated == nil then
    gated = call('SISMEMBER', key('gated'), batch) == 1
    gates[batch] = gated
  end
  return gated
end

local function set_gated(batch, gated)
  gates[batch] = gated
  call(gated and 'SADD' or 'SREM', key('gated'), batch)
end

local function enter_line(job)
  if limits.of(job.queue, job.kind) then
    lanes.add(lanes.name_of(job), rank_of(job.run_at, job.priority), place_of(job.seq, job.id),
      job.priority)
    lanes.enter()
    return
  end
  call('ZADD', ready_key(job.queue, job.kind), rank_of(job.run_at, job.priority),
    place_of(job.seq, job.id))
end

local function park(job)
  call('ZADD', key('parked:' .. job.batch), rank_of(job.run_at, job.priority),
    place_of(job.seq, job.id))
  call('HSET', job_key(job.id), 'gate', PARKED)
end

-- Take a job that waits at the gate of its batch out of the line; false if it is in none.
local function leave_line(job)
  if call('ZREM', ready_key(job.queue, job.kind), place_of(job.seq, job.id)) == 1 then return true end
  return job.role == INNER and limits.known() and lanes.leave(job)
end

-- Put a pending job where it belongs; `run_at` is its own already.
local function stand(job, due, alone)
  if job.waits and job.waits > 0 then
    call('HSET', job_key(job.id), 'gate', WAITING)
    return
  end
  if alone then
    call('ZADD', key('alone'), job.run_at, job.id)
    call('HSET', job_key(job.id), 'gate', ALONE)
    return
  end
  if due and job.batch and is_gated(job.batch)
    and (job.role == INNER or not limits.of(job.queue, job.kind)) then
    park(job)
    return
  end
  if job.gate and job.gate > 0 then call('HDEL', job_key(job.id), 'gate') end
  if due then
    enter_line(job)
  else
    call('ZADD', key('scheduled'), job.run_at, job.id)
  end
end

-- Take a pending job away from where it stands.
local function step_out(job)
  if job.gate == WAITING then return end
  if job.gate == ALONE then
    call('ZREM', key('alone'), job.id)
    call('HDEL', job_key(job.id), 'waiter')
  elseif job.gate == PARKED then
    call('ZREM', key('parked:' .. job.batch), place_of(job.seq, job.id))
  elseif call('ZREM', ready_key(job.queue, job.kind), place_of(job.seq, job.id)) == 0 then
    if not (limits.known() and lanes.leave(job)) then call('ZREM', key('scheduled'), job.id) end
  elseif job.gate == LET_IN then
    call('HINCRBY', batch_key(job.batch), 'let_in', -1)
  end
end

local function stop_running(job)
  if job.worker then
    call('ZREM', key('running:' .. job.worker), job.id)
    if job.cancel > 0 then call('SREM', key('cancels:' .. job.worker), job.id) end
  end
  if job.batch then call('ZREM', key('active:' .. job.batch), job.id) end
end

local function finished_key(state, kind) return PREFIX .. 'finished:' .. state .. ':' .. escaped(kind) end

-- Enter a job that came to an end into what retention and readers of failures look through.
local function file(job, state)
  if job.children then flows.ended[#flows.ended + 1] = job.id end
  if job.role < ITEM then call('ZADD', finished_key(state, job.kind), now, job.id) end
  if state == FAILED then
    call('ZADD', key('dead'), job.seq, job.id)
    if job.batch then call('ZADD', key('failed:' .. job.batch), job.seq, job.id) end
  end
end

local function unfile(job)
  if job.role < ITEM then call('ZREM', finished_key(job.state, job.kind), job.id) end
  if job.state == FAILED then
    call('ZREM', key('dead'), job.id)
    if job.batch then call('ZREM', key('failed:' .. job.batch), job.id) end
  elseif job.state == COMPLETED and job.role == SINGLE then
    call('ZREM', key('results:' .. escaped(job.kind)), job.id)
  end
end

-- Items of a batch that are due to be run alone: places are kept for them.
local function due_alone(batch)
  local n = 0
  for _, id in ipairs(call('ZRANGEBYSCORE', key('alone'), '-inf', now)) do
    if call('HGET', job_key(id), 'batch') == batch then n = n + 1 end
  end
  return n
end

-- How many more items of a batch may be let into the line, at most so many at once; below 0, as many
-- are too much. nil for one that is paused or has no limits.
local function room_in(batch)
  local b = call('HMGET', batch_key(batch), 'cancel', 'paused', 'concurrency', 'batch_size',
    'running', 'let_in', 'excess')
  if num(b[1]) > 0 or num(b[2]) > 0 or not (b[3] or b[4]) then return nil end
  if num(b[7]) > 0 then return 0 end
  local waiting, room = num(b[6]), AT_ONCE
  if b[4] then room = math.min(room, tonumber(b[4]) - waiting) end
  if b[3] then room = math.min(room, tonumber(b[3]) - num(b[5]) - waiting - due_alone(batch)) end
  return room
end

-- Let some parked items of a batch into the line, those of limited lines into their lanes; how many of
-- each.
local function admit_parked(batch, most, gate)
  if most <= 0 then return 0, 0 end
  local popped = call('ZPOPMIN', key('parked:' .. batch), most)
  local count, laned, entered = 0, 0, false
  for i = 1, #popped, 2 do
    local id = id_of(popped[i])
    local h = call('HMGET', job_key(id), 'queue', 'kind', 'key', 'priority', 'role')
    local role, limited = num(h[5]), limits.of(h[1], h[2])
    local free = limited and role ~= INNER
    if limited then
      lanes.add(lanes.name(h[1], h[2], role, batch, h[3]), popped[i + 1], popped[i], h[4])
      entered = true
    else
      call('ZADD', ready_key(h[1], h[2]), popped[i + 1], popped[i])
    end
    if free then laned = laned + 1 else count = count + 1 end
    if gate and not free then
      call('HSET', job_key(id), 'gate', gate)
    else
      call('HDEL', job_key(id), 'gate')
    end
  end
  if entered then lanes.enter() end
  return count, laned
end

-- Let parked items of a batch into the line as far as its limits allow; how many. Those in the line
-- count against `concurrency` as if they ran already, and are never more than `batch_size`: so no
-- claim can take too many, and none has to count.
local function let_in(batch)
  local room = is_gated(batch) and room_in(batch) or 0
  if room <= 0 then return 0 end
  local count, laned = admit_parked(batch, room, LET_IN)
  -- Those in lanes take no place before they are claimed: all of them go there, however many fit.
  while laned > 0 and count + laned < AT_ONCE do
    local more, more_laned = admit_parked(batch, room - count, LET_IN)
    if more + more_laned == 0 then break end
    count, laned = count + more, laned + more_laned
  end
  local opened = limits.known() and lanes.unshut(batch, room - count) or 0
  if count > 0 then call('HINCRBY', batch_key(batch), 'let_in', count) end
  if count + laned + opened > 0 then wakes_ready = true end
  return count + laned + opened
end

-- Park an item that stands in the line of a batch which gets limits just now, unless it was let in and
-- may stay; whether it was parked.
local function take_back(job)
  if job.gate == LET_IN then
    if num(call('HGET', batch_key(job.batch), 'excess')) <= 0 then return false end
  elseif job.gate ~= 0 then
    return false
  end
  if not leave_line(job) then return false end
  if job.gate == LET_IN then
    call('HINCRBY', batch_key(job.batch), 'let_in', -1)
    call('HINCRBY', batch_key(job.batch), 'excess', -1)
  end
  park(job)
  return true
end

-- Put scheduled jobs that are due into the line, or in front of their batch's gate.
local function promote()
  local due = call('ZRANGEBYSCORE', key('scheduled'), '-inf', now, 'LIMIT', 0, AT_ONCE)
  if #due == 0 then return end
  local touched = {}
  for _, id in ipairs(due) do
    local job = look(id)
    stand(job, true, false)
    if job.batch and is_gated(job.batch) then touched[job.batch] = true end
  end
  many('ZREM', key('scheduled'), due)
  for batch in pairs(touched) do let_in(batch) end
end
