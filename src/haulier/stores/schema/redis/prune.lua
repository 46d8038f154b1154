-- Remove one slice of what is kept no longer; how many jobs, the batches that are to be drained, and
-- whether there may be more. Keys: finished:<state>:<kind>, results:<kind>, periods, uniques, events,
-- history, batch:<id>, and those of slices.

-- A head may be final while its items still stop; others are being retried or deleted.
local function is_whole(id)
  local h = call('HMGET', job_key(id), 'role', 'state')
  if num(h[1]) ~= HEAD then return true end
  local b = call('HMGET', batch_key(id), 'owed', 'draining')
  return num(b[1]) == 0 and num(b[2]) == 0
end

local function too_old(at, before)
  local found, from = {}, 0
  while #found < DELETED_AT_ONCE do
    local ids = call('ZRANGEBYSCORE', at, '-inf', before, 'LIMIT', from, LOOKED_AT)
    for _, id in ipairs(ids) do
      if #found < DELETED_AT_ONCE and is_whole(id) then found[#found + 1] = id end
    end
    if #ids < LOOKED_AT then break end
    from = from + LOOKED_AT
  end
  return found
end

-- One that cannot go yet is still one of the oldest: no younger one goes in its stead.
local function too_many(at, most)
  local surplus = math.min(call('ZCARD', at) - most, DELETED_AT_ONCE)
  local found = {}
  if surplus <= 0 then return found end
  for _, id in ipairs(call('ZRANGE', at, 0, surplus - 1)) do
    if is_whole(id) then found[#found + 1] = id end
  end
  return found
end

local function remove_all(ids)
  local removed, batches = 0, {}
  for _, id in ipairs(ids) do
    local job = look(id)
    if job.role == HEAD then
      removed = removed + num(call('HGET', batch_key(id), 'total')) + 1
      begin_slices(id, PRUNING)
      batches[#batches + 1] = id
    else
      remove(job, false, false)
      removed = removed + 1
    end
  end
  write_ledger()
  return {removed, batches, 1}
end

local function expire_results(kind, before)
  local at = key('results:' .. escaped(kind))
  local ids = call('ZRANGEBYSCORE', at, '-inf', before, 'LIMIT', 0, DELETED_AT_ONCE)
  if #ids == 0 then return false end
  for _, id in ipairs(ids) do call('HDEL', job_key(id), 'result') end
  many('ZREM', at, ids)
  return true
end

local function prune_names()
  local names = call('ZRANGEBYSCORE', key('periods'), '-inf', now, 'LIMIT', 0, DELETED_AT_ONCE)
  for _, name in ipairs(names) do set_free(name) end
  return #names > 0
end

local function prune_events()
  local last = num(call('HGET', key('history'), 'last'))
  local gone
  for _, row in ipairs(call('XRANGE', key('events'), '-', '+', 'COUNT', EVENT_ROWS)) do
    local seq = tonumber(string.match(row[1], '^%d+'))
    if seq > last - EVENTS_KEPT and tonumber(row[2][4]) >= now - EVENTS_AGE then break end
    gone = seq
  end
  if gone then call('XTRIM', key('events'), 'MINID', whole(gone + 1)) end
  return gone ~= nil
end

return run(function()
  though_full()
  for _ = 1, number() do
    local kind, result_before = arg(), optional()
    for state = COMPLETED, CANCELLED do
      local before, most = optional(), number()
      local at = finished_key(state, kind)
      local ids = before and too_old(at, before) or {}
      if #ids == 0 and most then ids = too_many(at, most) end
      if #ids > 0 then return remove_all(ids) end
    end
    if result_before and expire_results(kind, result_before) then return {0, {}, 1} end
  end
  local names, events = prune_names(), prune_events()
  return {0, {}, (names or events) and 1 or 0}
end)
