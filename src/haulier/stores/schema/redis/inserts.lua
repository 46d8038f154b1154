-- New jobs, and batches while they are being filled. Everything is judged before anything is written.
-- Keys: history, job:<id>, payload:<id>, top, below, items:<batch>, batch:<id>, batches, gated,
-- uniques, and where a pending job stands.

-- Jobs come in runs that have all but id, payload, key and position in common.
local function read_jobs()
  local jobs = {}
  for _ = 1, number() do
    local run = {kind = arg(), queue = arg(), role = number(), version = arg(), priority = number(),
      run_at = optional(), delay = number(), batch = optional(), retry = optional(),
      on_lost = arg(), baggage = optional(), after = optional()}
    -- An instant in the past counts as now, or a producer could jump the line by naming one.
    if run.run_at then
      run.due = tonumber(run.run_at) <= now
      if run.due then run.run_at = now end
    else
      run.due = run.delay <= 0
      run.run_at = run.due and now or now + run.delay
    end
    for _ = 1, number() do
      jobs[#jobs + 1] = {run = run, id = arg(), payload = arg(), key = optional(),
        position = optional(), uniq = optional()}
    end
  end
  return jobs
end

local function read_policy()
  return {finish_kind = optional(), finish_queue = optional(), concurrency = optional(),
    batch_size = optional(), max_failures = optional()}
end

-- How many of these jobs there are already.
local function there_already(jobs)
  local n = 0
  for i = 1, #jobs, 1000 do
    local keys = {}
    for j = i, math.min(i + 999, #jobs) do keys[#keys + 1] = job_key(jobs[j].id) end
    n = n + call('EXISTS', unpack(keys))
  end
  return n
end

-- Mark those that are new; whether any job has a unique name.
local function mark_new(jobs)
  local seen, named, none = {}, false, there_already(jobs) == 0
  for _, job in ipairs(jobs) do
    if not seen[job.id] and (none or call('EXISTS', job_key(job.id)) == 0) then
      job.new = true
      if job.uniq then named = true end
    end
    seen[job.id] = true
  end
  return named
end

local CLOSED = {[BY_REQUEST] = 'cancelled', [CUT_SHORT] = 'cut short, too many of its items failed'}

-- Items may only go into batches that are open, or that start with this call.
local function check_open(jobs)
  local heads, checked = {}, {}
  for _, job in ipairs(jobs) do
    if job.new and is_head(job.run.role) then heads[job.id] = true end
  end
  for _, job in ipairs(jobs) do
    local batch = job.run.batch
    if job.new and batch and not heads[batch] and not checked[batch] then
      checked[batch] = true
      if job.run.role == INNER then check_depth(batch) end
      local b = call('HMGET', batch_key(batch), 'sealed', 'cancel', 'owed')
      if not b[3] then refuse('state', 'there is no batch ' .. batch .. ' to add items to') end
      if num(b[1]) > 0 or num(b[2]) > 0 then
        refuse('state', 'batch ' .. batch .. ' is ' .. (CLOSED[num(b[2])] or 'sealed')
          .. ': no items can be added')
      end
    end
  end
end

-- The fields that the jobs of a run have in common; those with their default are left out.
local function common_fields(run, state, lease, gated)
  local fields = {'kind', run.kind, 'queue', run.queue, 'state', whole(state), 'run_at', run.score,
    'created', NOW}
  local function also(name, value, default)
    if value and value ~= default then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  also('role', run.role, SINGLE)
  also('version', run.version, '1')
  also('priority', run.priority, 0)
  also('batch', run.batch)
  also('retry', run.retry)
  also('on_lost', run.on_lost, '0')
  also('baggage', run.baggage)
  also('lease', lease, 0)
  if gated then also('gate', PARKED) end
  if run.after then
    also('gate', WAITING)
    also('waits', #run.parents)
  end
  return fields
end

local function member_of(table_of_lists, name)
  local found = table_of_lists[name] or {}
  table_of_lists[name] = found
  return found
end

-- What writing the jobs of a run has to know, found out once. `lines` and `indexes` gather what goes
-- into sorted sets, so that each is written by one command.
local function prepare(run, state, lines, indexes)
  run.laned = run.due and not run.after and state == PENDING and limits.of(run.queue, run.kind) and true
  local lease = run.batch and num(call('HGET', batch_key(run.batch), 'leases')) or 0
  local gated = run.due and run.batch and (run.role == INNER or not run.laned) and is_gated(run.batch)
  if gated then run.laned = false end
  run.score = type(run.run_at) == 'number' and whole(run.run_at) or run.run_at
  run.fields = common_fields(run, state, lease, gated)
  run.group = group('insert', run.queue, run.kind, run.role, run.batch, nil, state)
  run.tail = tail_of(0, lease)
  run.index = member_of(indexes, key(run.role >= ITEM and 'below' or 'top'))
  run.items = run.batch and member_of(indexes, key('items:' .. run.batch))
  if run.due then run.score = whole(rank_of(run.run_at, run.priority)) end
  run.line = state == PENDING and not run.laned and not run.after
    and member_of(lines, gated and key('parked:' .. run.batch)
    or run.due and ready_key(run.queue, run.kind) or key('scheduled'))
end

local function write_job(job, run, number)
  local seq, at = whole(number), job_key(job.id)
  job.seq = seq
  if #job.payload <= COMPACT then
    call('HSET', at, 'seq', seq, 'payload', job.payload, unpack(run.fields))
  else
    call('HSET', at, 'seq', seq, unpack(run.fields))
    call('SET', PREFIX .. 'payload:' .. job.id, job.payload)
  end
  if job.key then call('HSET', at, 'key', job.key) end
  if job.position then call('HSET', at, 'position', job.position) end
  if job.names then call('HSET', at, 'uniq', job.names) end
  local index, items, line = run.index, run.items, run.line
  index[#index + 1] = seq
  index[#index + 1] = job.id
  if items then
    items[#items + 1] = seq
    items[#items + 1] = job.id
  end
  if run.laned then
    local lane = lanes.name(run.queue, run.kind, run.role, run.batch, job.key)
    lanes.add(lane, run.score, place_of(number, job.id), run.priority)
  elseif line then
    line[#line + 1] = run.score
    line[#line + 1] = run.due and place_of(number, job.id) or job.id
  end
  add(run.group, job.id, run.tail)
end

-- Write new jobs; how many. `state` is running for a head that its producer expands.
local function write_jobs(jobs, state)
  local total = 0
  for _, job in ipairs(jobs) do
    if job.new then total = total + 1 end
  end
  if total == 0 then return 0 end
  local last = call('HINCRBY', key('history'), 'seq', total) - total
  local indexes, lines, run = {}, {}, nil
  for _, job in ipairs(jobs) do
    if job.new then
      if job.run ~= run then
        run = job.run
        prepare(run, state, lines, indexes)
      end
      last = last + 1
      write_job(job, run, last)
    end
  end
  for index, members in pairs(indexes) do many('ZADD', index, members) end
  for line, members in pairs(lines) do many('ZADD', line, members) end
  if lanes.order[1] then lanes.enter() end
  follow_up(write_ledger())
  return total
end

local function add_batch(id, policy, own_expander, outer)
  local fields = {'own_expander', own_expander, 'owed', 1}
  for name, value in pairs(policy) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if policy.finish_kind then
    fields[#fields + 1] = 'round'
    fields[#fields + 1] = first_round(id)
  end
  call('HSET', batch_key(id), unpack(fields))
  if policy.concurrency or policy.batch_size then set_gated(id, true) end
  if outer then put_within(id, outer) else call('ZADD', key('batches'), 0, id) end
end

-- Unique names. A new job is judged by what stands written and by what those before it in this call
-- will have changed.

local function names_of(id, overlay)
  local uniq = overlay[id] or call('HGET', job_key(id), 'uniq')
  return uniq and cjson.decode(uniq) or {}
end

local function judge_name(job, u, held)
  local name, conflict, digest = u[1], u[3], u[5]
  if conflict == SKIP then return held.job end
  if conflict == MATCH then
    if held.digest ~= digest then
      refuse('conflict', 'this idempotency key was used before, with another body', held.job)
    end
    return held.job
  end
  local stays = held.state == RUNNING or (held.state == PENDING and held.begun)
  if conflict == REJECT or stays then
    refuse('duplicate', 'job ' .. held.job .. ' already holds this unique name', held.job)
  end
  if held.state == PENDING then job.replaced[#job.replaced + 1] = held.job end
end

local function judge(jobs)
  local names, overlay = {}, {}
  for _, job in ipairs(jobs) do
    if job.new and job.uniq then
      job.unique, job.replaced = cjson.decode(job.uniq), {}
      local kept = {}
      for i, u in ipairs(job.unique) do kept[i] = {u[1], u[2]} end
      job.names = cjson.encode(kept)
      for _, u in ipairs(job.unique) do
        local held = names[u[1]]
        if held == nil then held = holder(u[1]) end
        if held and held.job ~= job.id then
          job.instead = judge_name(job, u, held)
          if job.instead then break end
        end
      end
      if job.instead then
        job.new = false
      else
        for _, id in ipairs(job.replaced) do
          for _, u in ipairs(names_of(id, overlay)) do
            local held = names[u[1]]
            if held == nil then held = holder(u[1]) end
            if held and held.job == id and u[2] < PERIOD then names[u[1]] = false end
          end
        end
        for _, u in ipairs(job.unique) do
          names[u[1]] = {job = job.id, digest = u[5], state = PENDING, begun = false}
        end
        overlay[job.id] = job.names
      end
    end
  end
end

-- Cancel pending jobs in whose place another one is inserted.
local function replace(job)
  for _, id in ipairs(job.replaced) do
    local gone = look(id)
    if gone.state == PENDING then
      drop(gone, as_kept('{"type":"Replaced","message":"by job ' .. job.id
        .. '","traceback":"","attempt":0}', 0, nil), 'Replaced')
      follow_up(write_ledger())
      if is_head(gone.role) then
        begin_cancel(id, BY_REQUEST)
        -- It has no items yet, or it would have stayed.
        drain(id)
      end
    end
  end
end

-- One by one, so that what gives way goes before the one that comes.
local function write_named(jobs, state)
  local new = 0
  for _, job in ipairs(jobs) do
    if job.new then
      if job.unique then
        replace(job)
        take_names(job.id, job.unique)
      end
      new = new + write_jobs({job}, state)
    end
  end
  return new
end

local function instead_of(jobs)
  local pairs_of_ids = {}
  for _, job in ipairs(jobs) do
    if job.instead then
      pairs_of_ids[#pairs_of_ids + 1] = job.id
      pairs_of_ids[#pairs_of_ids + 1] = job.instead
    end
  end
  return pairs_of_ids
end

local function check_fence(id, lease)
  local h = call('HMGET', job_key(id), 'state', 'lease')
  if h[1] ~= '1' or h[2] ~= lease then
    refuse('lease', 'job ' .. id .. ' is no longer held by lease ' .. lease)
  end
end
