-- What one script did to jobs, gathered group by group because most moves are alike, and written
-- once: counters of queues, counters of batches, and events can never disagree.
-- Keys: counts, batch:<id>, history, events. Channels: events, wake:ready, wake:settled.

local groups, order = {}, {}
local wakes_ready, wakes_settled = false, false
local told = {}

-- Jobs that others wait for: those that ended in this script, and those that were requeued; see flows.
local flows = {ended = {}, back = {}}

-- A job went from one state to another. No source: it was inserted. No target: it was removed.
-- Twice the same: only an event. `uncounted`: its batch goes as well, and its counters with it.
local function group(event, queue, kind, role, batch, source, target, worker, err, uncounted)
  local name = table.concat({event, queue, kind, role, batch or '', source or '', target or '',
    worker or '', err or '', uncounted and 1 or 0}, '\0')
  local found = groups[name]
  if not found then
    found = {event = event, queue = queue, kind = kind, role = role, batch = batch,
      source = source, target = target, worker = worker, err = err, uncounted = uncounted,
      n = 0, jobs = {}}
    groups[name] = found
    order[#order + 1] = found
  end
  return found
end

local function add(found, id, tail)
  local n = found.n + 1
  found.n = n
  found.jobs[n] = id .. tail
end

-- What tells the events of one job apart, behind its id.
local function tail_of(attempt, lease) return ',' .. attempt .. ',' .. lease end

local function moved(event, job, source, target, worker, err, uncounted)
  add(group(event, job.queue, job.kind, job.role, job.batch, source, target, worker, err,
    uncounted), job.id, tail_of(job.attempt, job.lease))
end

local function add_to(deltas, name, n) deltas[name] = (deltas[name] or 0) + n end

local function count(counts, batches)
  for _, g in ipairs(order) do
    if g.source ~= g.target then
      local line = escaped(g.queue) .. ':' .. escaped(g.kind) .. ':' .. g.role .. ':'
      if g.source then add_to(counts, line .. g.source, -g.n) end
      if g.target then add_to(counts, line .. g.target, g.n) end
      if g.role >= ITEM and g.batch and not g.uncounted then
        local deltas = batches[g.batch]
        if not deltas then
          deltas = {}
          batches[g.batch] = deltas
          batches[#batches + 1] = g.batch
        end
        if g.source then add_to(deltas, STATES[g.source + 1], -g.n) else add_to(deltas, 'total', g.n) end
        if g.target then add_to(deltas, STATES[g.target + 1], g.n) else add_to(deltas, 'total', -g.n) end
      end
    end
  end
end

local function text(value) return cjson.encode(value) end

-- What a person sees who subscribes to the channel.
local function tell(g, last)
  local parts = {'{"type":"', g.event, '","n":', g.n, ',"queue":', text(g.queue), ',"kind":',
    text(g.kind), ',"role":"', ROLES[g.role + 1], '"'}
  if g.batch then parts[#parts + 1] = ',"batch":"' .. g.batch .. '"' end
  if g.worker then parts[#parts + 1] = ',"worker":"' .. g.worker .. '"' end
  if g.err then parts[#parts + 1] = ',"error":' .. text(g.err) end
  if g.n == 1 then parts[#parts + 1] = ',"job":"' .. string.sub(g.jobs[1], 1, 36) .. '"' end
  parts[#parts + 1] = ',"last":' .. whole(last) .. '}'
  told[#told + 1] = table.concat(parts)
end

local function write_events()
  local total = 0
  for _, g in ipairs(order) do total = total + g.n end
  local seq = call('HINCRBY', key('history'), 'last', total) - total
  call('HSET', key('history'), 'at', NOW)
  for _, g in ipairs(order) do
    seq = seq + g.n
    call('XADD', key('events'), whole(seq) .. '-0', 'n', g.n, 'at', NOW, 'type', g.event,
      'kind', g.kind, 'queue', g.queue, 'role', g.role, 'batch', g.batch or '',
      'worker', g.worker or '', 'error', g.err or '', 'jobs', table.concat(g.jobs, ';'))
    tell(g, seq)
    if g.target == PENDING or g.event == 'cancel_requested' or g.event == 'resume'
      or g.event == 'configured' then
      wakes_ready = true
    end
    if not g.target or g.target > RUNNING or g.source == g.target then wakes_settled = true end
  end
end

-- Writes counters and events; returns the batches whose counters changed, each with the number of
-- new failures.
local function write_ledger()
  if #order == 0 then return {} end
  local counts, batches, touched = {}, {}, {}
  count(counts, batches)
  for field, n in pairs(counts) do
    if n ~= 0 and call('HINCRBY', key('counts'), field, n) == 0 then
      call('HDEL', key('counts'), field)
    end
  end
  for _, batch in ipairs(batches) do
    local deltas = batches[batch]
    for field, n in pairs(deltas) do
      if n ~= 0 then call('HINCRBY', batch_key(batch), field, n) end
    end
    if (deltas.running or 0) > 0 then call('HSETNX', batch_key(batch), 'started', now) end
    touched[#touched + 1] = {batch = batch, failures = deltas.failed or 0}
  end
  write_events()
  groups, order = {}, {}
  return touched
end

-- Once per script: tell those who wait, and those who watch.
local function publish()
  if wakes_ready then call('PUBLISH', key('wake:ready'), CALLER) end
  if wakes_settled then call('PUBLISH', key('wake:settled'), CALLER) end
  if #told > 0 then
    call('PUBLISH', key('events'), '{"by":"' .. CALLER .. '","at":' .. whole(now) .. ',"events":['
      .. table.concat(told, ',') .. ']}')
  end
end

local function place_in_history()
  local h = call('HMGET', key('history'), 'last', 'at', 'epoch', 'generation')
  return num(h[1]), num(h[2]), h[3] or '', num(h[4])
end

-- Whether the caller remembers more of this history than there is: some of it was lost.
local function is_behind(last, at, epoch)
  if EPOCH == '' then return false end
  if epoch == '' then return true end
  return epoch == EPOCH and (last < LAST or (last == LAST and at ~= LAST_AT))
end

-- The end of every script: its verb is run, unless history was lost, and what it came to is sent off
-- with the place in the history. `anyhow`: also if it was lost.
local function run(verb, anyhow)
  if not anyhow and is_behind(place_in_history()) then return {2} end
  local ok, value = pcall(function()
    if open_only then must_be_open() end
    local value = verb()
    if flows.follow then flows.follow(flows.asked) end
    return value
  end)
  if ok then
    publish()
    local last, at, epoch, generation = place_in_history()
    if flows.more then return {0, last, at, epoch, generation, value or false, 1} end
    return {0, last, at, epoch, generation, value}
  end
  if type(value) == 'table' then return value.refused or value end
  return redis.error_reply(value)
end
