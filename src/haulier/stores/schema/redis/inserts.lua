-- New jobs, and batches while they are being filled. Everything is judged before anything is written.
-- Keys: history, job:<id>, payload:<id>, top, below, items:<batch>, batch:<id>, batches, gated, uniques, and where a
-- pending job stands.

-- Jobs come in runs that have all but id, payload, key and position in common.
local function read_jobs()
  local jobs = {}
  for _ = 1, number() do
    local run = {kind = arg(), queue = arg(), role = number(), version = arg(), priority = number(),
      run_at = optional(), delay = number(), batch = optional(), retry = optional(),
      on_lost = arg()}
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

-- Mark those that are new; whether any job has a unique name.
local function mark_new(jobs)
  local seen, named = {}, false
  for _, job in ipairs(jobs) do
    if not seen[job.id] and call('EXISTS', job_key(job.id)) == 0 then
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
    if job.new and job.run.role == HEAD then heads[job.id] = true end
  end
  for _, job in ipairs(jobs) do
    local batch = job.run.batch
    if job.new and batch and not heads[batch] and not checked[batch] then
      checked[batch] = true
      local b = call('HMGET', batch_key(batch), 'sealed', 'cancel', 'owed')
      if not b[3] then refuse('state', 'there is no batch ' .. batch .. ' to add items to') end
      if num(b[1]) > 0 or num(b[2]) > 0 then
        refuse('state', 'batch ' .. batch .. ' is ' .. (CLOSED[num(b[2])] or 'sealed')
          .. ': no items can be added')
      end
    end
  end
end

-- Write the rows of new jobs that follow each other; `state` is running for a head that its producer
-- expands.
local function write_jobs(jobs, state)
  local total = 0
  for _, job in ipairs(jobs) do
    if job.new then total = total + 1 end
  end
  if total == 0 then return 0 end
  local seq = call('HINCRBY', key('history'), 'seq', total) - total
  local top, below, items, lines, leases = {}, {}, {}, {}, {}
  local run, common, g, lease, gated
  for _, job in ipairs(jobs) do
    if job.new then
      if job.run ~= run then
        run = job.run
        lease = 0
        if run.batch then
          lease = leases[run.batch] or num(call('HGET', batch_key(run.batch), 'leases'))
          leases[run.batch] = lease
          items[run.batch] = items[run.batch] or {}
        end
        common = {'kind', run.kind, 'queue', run.queue, 'state', state, 'run_at', run.run_at,
          'created', now}
        local function also(name, value, default)
          if value and value ~= default then
            common[#common + 1] = name
            common[#common + 1] = value
          end
        end
        also('role', run.role, SINGLE)
        also('version', run.version, '1')
        also('priority', run.priority, 0)
        also('batch', run.batch)
        also('retry', run.retry)
        also('on_lost', run.on_lost, '0')
        also('lease', lease, 0)
        gated = run.due and run.batch and is_gated(run.batch)
        if gated then also('gate', PARKED) end
        g = group('insert', run.queue, run.kind, run.role, run.batch, nil, state)
      end
      seq = seq + 1
      local at = job_key(job.id)
      if #job.payload <= COMPACT then
        call('HSET', at, 'seq', seq, 'payload', job.payload, unpack(common))
      else
        call('HSET', at, 'seq', seq, unpack(common))
        call('SET', PREFIX .. 'payload:' .. job.id, job.payload)
      end
      if job.key then call('HSET', at, 'key', job.key) end
      if job.position then call('HSET', at, 'position', job.position) end
      if job.names then call('HSET', at, 'uniq', job.names) end
      local index = run.role == ITEM and below or top
      index[#index + 1] = seq
      index[#index + 1] = job.id
      if run.batch then
        local beside = items[run.batch]
        beside[#beside + 1] = seq
        beside[#beside + 1] = job.id
      end
      if state == PENDING then
        local line, score, member
        if gated then
          line, score = key('parked:' .. run.batch), rank_of(run.run_at, run.priority)
          member = place_of(seq, job.id)
        elseif run.due then
          line, score = ready_key(run.queue, run.kind), rank_of(run.run_at, run.priority)
          member = place_of(seq, job.id)
        else
          line, score, member = key('scheduled'), run.run_at, job.id
        end
        local waiting = lines[line] or {}
        lines[line] = waiting
        waiting[#waiting + 1] = score
        waiting[#waiting + 1] = member
      end
      add(g, job.id, 0, lease)
    end
  end
  many('ZADD', key('top'), top)
  many('ZADD', key('below'), below)
  for batch, members in pairs(items) do many('ZADD', key('items:' .. batch), members) end
  for line, waiting in pairs(lines) do many('ZADD', line, waiting) end
  follow_up(write_ledger())
  return total
end

local function add_batch(id, policy, own_expander)
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
  call('ZADD', key('batches'), 0, id)
  if policy.concurrency or policy.batch_size then set_gated(id, true) end
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
      if gone.role == HEAD then
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
