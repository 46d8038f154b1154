-- Claiming: the first jobs of the line that a worker can start, and those that run alone.
-- Keys: ready:<queue>:<kind>, alone, scheduled, draining, job:<id>, worker:<id>, running:<worker>,
-- active:<batch>, parked:<batch>, batch:<id>.

local function read_demands()
  local demands = {}
  for i = 1, number() do
    local demand = {slots = number(), queues = list(), portions = {}}
    -- Of queues that are taken from by weight, their times.
    if number() == 1 then
      demand.times = {}
      for _, queue in ipairs(demand.queues) do
        demand.times[queue] = {step = number(), ahead = number()}
      end
    end
    for j = 1, number() do demand.portions[j] = {slots = number(), kinds = list()} end
    demands[i] = demand
  end
  return demands
end

-- What is asked for of queues that are not paused.
local function open_demands(demands, paused)
  local shut, left = {}, {}
  for _, queue in ipairs(cjson.decode(paused)) do shut[queue] = true end
  for _, demand in ipairs(demands) do
    local queues = {}
    for _, queue in ipairs(demand.queues) do
      if not shut[queue] then queues[#queues + 1] = queue end
    end
    if #queues > 0 then
      left[#left + 1] = {slots = demand.slots, queues = queues, portions = demand.portions,
        times = demand.times}
    end
  end
  return left
end

local function wanted_by(demands)
  local wanted = 0
  for _, demand in ipairs(demands) do wanted = wanted + demand.slots end
  return wanted
end

local tails, last_group = {}, nil

-- Most of what one claim finds is alike.
local function claim_group(row, batch, worker)
  local queue, kind, role, g = row[F_QUEUE], row[F_KIND], num(row[F_ROLE]), last_group
  if not g or g.queue ~= queue or g.kind ~= kind or g.role ~= role or g.batch ~= batch then
    g = group('claim', queue, kind, role, batch, PENDING, RUNNING, worker)
    last_group = g
  end
  return g
end

-- Give a worker a job that was taken out of its line; what the worker is told of it.
local function claim_job(id, worker, floor, running)
  local at = job_key(id)
  local row = row_of(id, at)
  local attempt, lease = num(row[F_ATTEMPT]) + 1, math.max(num(row[F_LEASE]), floor) + 1
  local tail = tails[lease]
  if not tail or tail.attempt ~= attempt then
    tail = {attempt = attempt, attempt_text = whole(attempt), lease_text = whole(lease),
      text = tail_of(attempt, lease)}
    tails[lease] = tail
  end
  call('HSET', at, 'state', 'RUNNING', 'attempt', tail.attempt_text, 'lease', tail.lease_text,
    'worker', worker, 'started', NOW)
  if row[F_FINISHED] or row[F_PROGRESS] or row[F_MESSAGE] or row[F_GATE] == '3' then
    call('HDEL', at, 'finished', 'progress', 'message', 'waiter')
  end
  local batch = row[F_BATCH] or nil
  if row[F_GATE] == '2' then call('HINCRBY', batch_key(batch), 'let_in', -1) end
  if row[F_UNIQ] then release_claimed(id, row[F_UNIQ]) end
  add(claim_group(row, batch, worker), id, tail.text)
  if batch then call('ZADD', key('active:' .. batch), row[F_SEQ], id) end
  running[#running + 1] = row[F_SEQ]
  running[#running + 1] = id
  row[F_STATE], row[F_ATTEMPT], row[F_LEASE], row[F_WORKER] = RUNNING, attempt, lease, worker
  row[F_STARTED], row[F_FINISHED], row[F_PROGRESS], row[F_MESSAGE] = now, false, false, false
  row[#row + 1] = id
  return row
end

-- Alone

local function asked_for(demands, queue, kind)
  for _, demand in ipairs(demands) do
    for _, q in ipairs(demand.queues) do
      if q == queue then
        for _, portion in ipairs(demand.portions) do
          for _, k in ipairs(portion.kinds) do
            if k == kind then return true end
          end
        end
      end
    end
  end
  return false
end

local function is_alive(worker)
  local h = call('HMGET', key('worker:' .. worker), 'expires', 'ended')
  return h[1] and not h[2] and tonumber(h[1]) > now
end

local function runs_a_loner(worker)
  local loner = call('HGET', key('worker:' .. worker), 'loner')
  if not loner then return false end
  local h = call('HMGET', job_key(loner), 'state', 'gate', 'worker')
  if h[1] == '1' and h[2] == '3' and h[3] == worker then return true end
  call('HDEL', key('worker:' .. worker), 'loner')
  return false
end

-- Those in the line count as if they ran already: nobody counts again when they are claimed.
local function has_no_room(batch)
  if not batch then return false end
  local b = call('HMGET', batch_key(batch), 'paused', 'concurrency', 'running', 'let_in')
  return num(b[1]) > 0 or (b[2] and num(b[3]) + num(b[4]) >= tonumber(b[2]))
end

-- Whether a claim stopped looking before the end of what it may find something in.
local unlooked = false

-- The first job to be run alone that this worker could take, or is to run dry for. Those of other
-- workers' kinds, or of paused batches, may be many: the next claim goes on where this one stops.
local function suitable_loner(worker, demands)
  if call('EXISTS', key('alone')) == 0 then return nil end
  local idle = call('EXISTS', key('running:' .. worker)) == 0
  local at = key('worker:' .. worker)
  local from = num(call('HGET', at, 'looked'))
  local ids = call('ZRANGEBYSCORE', key('alone'), '-inf', now, 'LIMIT', from, LONERS_AT_ONCE)
  for _, id in ipairs(ids) do
    local h = call('HMGET', job_key(id), 'queue', 'kind', 'batch', 'waiter')
    if asked_for(demands, h[1], h[2]) and not has_no_room(h[3]) then
      local mine = h[4] == worker
      if idle or mine or not (h[4] and is_alive(h[4])) then return id, idle, mine end
    end
  end
  if #ids == LONERS_AT_ONCE then
    unlooked = true
    call('HSET', at, 'looked', from + #ids)
  elseif from > 0 then
    call('HDEL', at, 'looked')
  end
end

-- A job that runs alone, for a worker without any other; nil: claim as usual. A worker that is busy
-- gets nothing more until it has run dry, so that one that never would be idle takes it too.
local function claim_loner(worker, demands, floor, running)
  if runs_a_loner(worker) then return {} end
  local id, idle, mine = suitable_loner(worker, demands)
  if not id then return nil end
  if not idle then
    if not mine then call('HSET', job_key(id), 'waiter', worker) end
    return {}
  end
  call('ZREM', key('alone'), id)
  call('HSET', key('worker:' .. worker), 'loner', id)
  return {claim_job(id, worker, floor, running)}
end

-- In the line

-- The lines in which something stands that a demand asks for.
local function lines_of(demand)
  local lines = {}
  for n, portion in ipairs(demand.portions) do
    for _, queue in ipairs(demand.queues) do
      for _, kind in ipairs(portion.kinds) do
        local at = ready_key(queue, kind)
        if call('EXISTS', at) == 1 then
          lines[#lines + 1] = {key = at, queue = queue, portion = n, sound = demand.slots}
        end
      end
    end
  end
  return lines
end

-- A batch that is just being paused still has items in the line. A claim takes those away that it
-- meets: passing over them would cost every claim the same way again. Returns how many of the first
-- are sound.
local function park_ahead(line, pausing)
  local sound, places = 0, call('ZRANGE', line, 0, LOOKED_THROUGH - 1)
  for _, place in ipairs(places) do
    local id = id_of(place)
    local batch = call('HGET', job_key(id), 'batch')
    if batch and pausing[batch] == LIMITING then
      if not take_back(look(id)) then sound = sound + 1 end
    elseif batch and pausing[batch] then
      call('ZREM', line, place)
      local job = look(id)
      if job.gate == LET_IN then call('HINCRBY', batch_key(batch), 'let_in', -1) end
      park(job)
    else
      sound = sound + 1
    end
  end
  if sound < #places and #places == LOOKED_THROUGH then unlooked = true end
  return sound
end

local function pausing_batches()
  local found
  for _, batch in ipairs(call('SMEMBERS', key('draining'))) do
    local what = num(call('HGET', batch_key(batch), 'draining'))
    if what == PAUSING or what == LIMITING then
      found = found or {}
      found[batch] = what
    end
  end
  return found
end

local function by_rank(a, b)
  if a.rank ~= b.rank then return a.rank < b.rank end
  return a.place < b.place
end

-- Jobs that stand in line by rank, ordered by the times of their queues instead: the n-th of a queue
-- by its time after n jobs.
local function in_turn(waiting, times)
  local nth = {}
  for _, each in ipairs(waiting) do
    local queue = each.line.queue
    nth[queue] = (nth[queue] or 0) + 1
    each.rank = times[queue].ahead + nth[queue] * times[queue].step
  end
  table.sort(waiting, by_rank)
end

-- The first jobs of several lines merged into one, so that none of them starves another.
local function line_up(demand, lines)
  local room, waiting, chosen, leaving = {}, {}, {}, {}
  for n, portion in ipairs(demand.portions) do room[n] = portion.slots end
  for _, line in ipairs(lines) do
    local slots = math.min(demand.slots, room[line.portion], line.sound)
    local first = slots > 0 and call('ZRANGE', line.key, 0, slots - 1, 'WITHSCORES') or {}
    for i = 1, #first, 2 do
      waiting[#waiting + 1] = {rank = tonumber(first[i + 1]), place = first[i], line = line}
    end
  end
  table.sort(waiting, by_rank)
  if demand.times then in_turn(waiting, demand.times) end
  for _, each in ipairs(waiting) do
    local n = each.line.portion
    if room[n] > 0 and #chosen < demand.slots then
      room[n] = room[n] - 1
      chosen[#chosen + 1] = each.place
      local places = leaving[each.line.key] or {}
      leaving[each.line.key] = places
      places[#places + 1] = each.place
    end
  end
  for at, places in pairs(leaving) do many('ZREM', at, places) end
  return chosen
end

local function take_out(demand, pausing)
  local lines = lines_of(demand)
  if pausing then
    for _, line in ipairs(lines) do line.sound = park_ahead(line.key, pausing) end
  end
  if #lines ~= 1 then return line_up(demand, lines) end
  local slots = math.min(demand.slots, demand.portions[lines[1].portion].slots, lines[1].sound)
  local places = {}
  if slots > 0 then
    local popped = call('ZPOPMIN', lines[1].key, slots)
    for i = 1, #popped, 2 do places[#places + 1] = popped[i] end
  end
  return places
end

-- Claim what the demands ask for and may start now. `more`: there may be others by now.
local function claim(worker, demands)
  promote()
  local floor = num(call('HGET', key('history'), 'generation')) * GENERATION
  local running = {}
  local jobs = claim_loner(worker, demands, floor, running)
  if not jobs then
    jobs = {}
    local pausing = pausing_batches()
    for _, demand in ipairs(demands) do
      for _, place in ipairs(take_out(demand, pausing)) do
        jobs[#jobs + 1] = claim_job(id_of(place), worker, floor, running)
      end
    end
  end
  many('ZADD', key('running:' .. worker), running)
  local more = unlooked
  for _, touched in ipairs(write_ledger()) do
    if let_in(touched.batch) > 0 then more = true end
  end
  return jobs, more
end

-- When the next job becomes due that is not in the line yet.
local function next_due()
  local scheduled = call('ZRANGE', key('scheduled'), 0, 0, 'WITHSCORES')[2]
  local alone = call('ZRANGEBYSCORE', key('alone'), '(' .. whole(now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  scheduled, alone = tonumber(scheduled), tonumber(alone)
  if scheduled and alone then return math.min(scheduled, alone) end
  return scheduled or alone
end
