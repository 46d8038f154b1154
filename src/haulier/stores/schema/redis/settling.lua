-- What follows when counters of a batch have changed: more items let in, cut short, or settled. A
-- batch settles in the script that finished its last item.
-- Keys: batch:<id>, batches, draining, active:<batch>, cancels:<worker>, and those of a new job.

local function look_at_batch(id)
  local h = call('HMGET', batch_key(id), 'cancel', 'failed', 'max_failures', 'owed', 'pending',
    'running', 'draining', 'sealed', 'total', 'completed', 'cancelled', 'finish_kind',
    'finish_queue', 'round', 'own_expander', 'paused', 'concurrency', 'batch_size',
    'unsettled', 'within')
  if not h[4] then return nil end
  return {
    id = id, cancel = num(h[1]), failed = num(h[2]), max_failures = tonumber(h[3] or nil),
    owed = num(h[4]), pending = num(h[5]), running = num(h[6]), draining = num(h[7]),
    sealed = num(h[8]), total = num(h[9]), completed = num(h[10]), cancelled = num(h[11]),
    finish_kind = h[12] or nil, finish_queue = h[13] or nil, round = num(h[14]),
    own_expander = num(h[15]), paused = num(h[16]), limited = (h[17] or h[18]) and true or false,
    unsettled = num(h[19]), within = h[20] or nil,
  }
end

local function within(batch) return call('HGET', batch_key(batch), 'within') or nil end

-- Whether a batch has settled, as it tells the one around it too.
local function set_owed(batch, owed)
  local h = call('HMGET', batch_key(batch), 'owed', 'within')
  call('HSET', batch_key(batch), 'owed', owed)
  if h[2] and num(h[1]) ~= owed then
    call('HINCRBY', batch_key(h[2]), 'unsettled', owed == 1 and 1 or -1)
  end
end

local function begin_slices(batch, what)
  call('HSET', batch_key(batch), 'draining', what, 'drained', 0, 'moved', 0)
  call('HDEL', batch_key(batch), 'telling', 'inner_at')
  call('SADD', key('draining'), batch)
end

local function end_slices(batch)
  call('HSET', batch_key(batch), 'draining', 0)
  call('HDEL', batch_key(batch), 'telling', 'inner_at')
  call('SREM', key('draining'), batch)
end

-- Request the cancel of running items of a batch, one slice of them from a cursor on; where to go on,
-- nil at the end.
local function tell_running(batch, cursor)
  local ids = call('ZRANGEBYSCORE', key('active:' .. batch), '(' .. whole(cursor), '+inf', 'WITHSCORES',
    'LIMIT', 0, LOOKED_AT)
  local told, following = 0, #ids == 2 * LOOKED_AT and tonumber(ids[#ids]) or nil
  for i = 1, #ids, 2 do
    local id = ids[i]
    if call('HEXISTS', job_key(id), 'cancel') == 0 then
      local job = look(id)
      call('HSET', job_key(id), 'cancel', REQUESTED)
      call('SADD', key('cancels:' .. job.worker), id)
      moved('cancel_requested', job, RUNNING, RUNNING)
      told = told + 1
      if told == TOLD_AT_ONCE then
        following = tonumber(ids[i + 1])
        break
      end
    end
  end
  write_ledger()
  return following
end

-- Go on telling running items in the next slice: before the pending ones are dropped, or after that.
local function tell_later(batch, when, cursor)
  call('HSET', batch_key(batch), 'telling', when, 'drained', cursor)
end

-- Mark a batch as cancelled and tell its running items; slices then drop the pending ones. The
-- first reason stays. Nothing is left to be paused.
local function begin_cancel(batch, why)
  if num(call('HGET', batch_key(batch), 'cancel')) == 0 then
    call('HSET', batch_key(batch), 'cancel', why)
  end
  call('HDEL', batch_key(batch), 'paused')
  begin_slices(batch, CANCELLING)
  local following = tell_running(batch, 0)
  if following then tell_later(batch, BEFORE, following) end
end

-- The id that belongs to a round of a batch: the same arguments give the same id. A UUIDv7 with the
-- time of the batch, so that it sorts beside it (RFC 9562), and a hash for its random part.
local function callback_id(batch, round)
  local d = redis.sha1hex(batch .. '/finish/' .. round)
  local variant = string.sub('89ab', tonumber(string.sub(d, 5, 5), 16) % 4 + 1,
    tonumber(string.sub(d, 5, 5), 16) % 4 + 1)
  return string.sub(batch, 1, 13) .. '-7' .. string.sub(d, 2, 4) .. '-' .. variant
    .. string.sub(d, 6, 8) .. '-' .. string.sub(d, 9, 20)
end

-- Where the rounds of a batch begin: an earlier one of its id may have left callbacks.
local function first_round(batch)
  local round = 0
  while call('EXISTS', job_key(callback_id(batch, round))) == 1 do round = round + 1 end
  return round
end

local function counts_text(b)
  return '{"total":' .. b.total .. ',"completed":' .. b.completed .. ',"failed":' .. b.failed
    .. ',"cancelled":' .. b.cancelled .. '}'
end

local function call_back(b, state)
  -- A copy of the store brings callbacks along, but not how many there were.
  while call('EXISTS', job_key(callback_id(b.id, b.round))) == 1 do b.round = b.round + 1 end
  local id = callback_id(b.id, b.round)
  local head = call('HMGET', job_key(b.id), 'priority', 'baggage')
  local priority = num(head[1])
  local seq = call('HINCRBY', key('history'), 'seq', 1)
  local payload = '{"batch_id":"' .. b.id .. '","state":"' .. STATES[state + 1] .. '","counts":'
    .. counts_text(b) .. '}'
  call('HSET', job_key(id), 'seq', seq, 'kind', b.finish_kind, 'queue', b.finish_queue,
    'state', PENDING, 'run_at', now, 'created', now)
  call('SET', key('payload:' .. id), payload)
  if priority ~= 0 then call('HSET', job_key(id), 'priority', priority) end
  if head[2] then call('HSET', job_key(id), 'baggage', head[2]) end
  call('ZADD', key('top'), seq, id)
  local job = {id = id, seq = seq, queue = b.finish_queue, kind = b.finish_kind, role = SINGLE,
    attempt = 0, lease = 0, priority = priority, run_at = now}
  enter_line(job)
  moved('insert', job, nil, PENDING)
  return id
end

-- End the head, unless it ended before its items did, and call back; which batch that concerns.
local function settle(b)
  local top = look(b.id)
  local state = top.state
  if state == RUNNING then
    local move = b.cancel == 0 and 'settle' or (b.cancel == CUT_SHORT and 'give_up' or 'abandon')
    local err
    state = RULES[move].target
    if move == 'give_up' then
      err = 'MaxFailuresExceeded'
      call('HSET', job_key(b.id), 'error', '{"type":"' .. err .. '","message":"' .. b.failed
        .. ' of the items failed and ' .. b.max_failures
        .. ' may; the rest was cancelled","traceback":"","attempt":0,"at":' .. whole(now)
        .. ',"lease":0,"worker":null}')
    end
    call('HSET', job_key(b.id), 'state', state, 'finished', now, 'result', counts_text(b))
    call('HDEL', job_key(b.id), 'cancel')
    release_ended(b.id, top.uniq)
    file(top, state)
    moved(move, top, RUNNING, state, nil, err)
  end
  local callback = b.finish_kind and call_back(b, state)
  call('HSET', batch_key(b.id), 'round', b.round + 1)
  set_owed(b.id, 0)
  if callback then call('HSET', batch_key(b.id), 'finish_job', callback) end
  set_gated(b.id, false)
  if top.children then flows.ended[#flows.ended + 1] = b.id end
  local touched = write_ledger()
  if #touched == 0 and b.within then touched[1] = {batch = b.within, failures = 0} end
  return touched
end

-- Do what the new counters of these batches ask for; whether one settled, and those cut short, which
-- are to be drained.
local function follow_up(touched)
  local settled, cut = false, {}
  local todo = {unpack(touched)}
  while #todo > 0 do
    local each = table.remove(todo, 1)
    local b = look_at_batch(each.batch)
    if b then
      -- Only a new failure counts: some of the old ones may just be tried again.
      if b.max_failures and b.cancel == 0 and b.failed > b.max_failures and each.failures > 0 then
        begin_cancel(b.id, CUT_SHORT)
        cut[#cut + 1] = b.id
      elseif b.owed == 1 and b.pending == 0 and b.running == 0 and b.draining == 0
          and b.unsettled == 0 then
        local top = call('HMGET', job_key(b.id), 'state', 'worker')
        local state = num(top[1])
        local waits = not top[2] and (b.sealed == 1 or b.cancel > 0)
        if state > RUNNING or (state == RUNNING and waits) then
          -- What it is an item of may settle now.
          for _, next_one in ipairs(settle(b)) do todo[#todo + 1] = next_one end
          settled = true
        else
          let_in(b.id)
        end
      else
        let_in(b.id)
      end
    end
  end
  return settled, cut
end

local function settle_done(batch) return (follow_up({{batch = batch, failures = 0}})) end
