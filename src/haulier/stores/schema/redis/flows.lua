-- Jobs that wait for others: told when these end, cancelled with them, and brought back with them. Who
-- ends a job that others wait for notes it in `flows.ended`; the end of the script tells them, slice by
-- slice: what is left is gone on with by whoever called, or by the next sweep.
-- Keys: edges:<id>, children:<id>, untold:<id>, end:<id>, telling, reviving, job:<id>, batch:<id>.

local flow = {}

-- An edge as its child keeps it: its place among the child's, what is to be done when the parent does
-- not complete (0 cancel, 1 run), and what the parent came to.
function flow.edge(child, parent)
  local value = call('HGET', key('edges:' .. child), parent)
  if not value then return nil end
  local nth, otherwise, state = string.match(value, '^(%d+):(%d):(%d?)$')
  return {nth = nth, otherwise = tonumber(otherwise), state = tonumber(state)}
end

function flow.set_edge(child, parent, edge, state)
  call('HSET', key('edges:' .. child), parent, edge.nth .. ':' .. edge.otherwise .. ':' .. (state or ''))
end

-- Take note of what ended or was requeued in this script.
function flow.collect()
  local ended, back = flows.ended, flows.back
  flows.ended, flows.back = {}, {}
  for _, id in ipairs(back) do
    call('HSET', job_key(id), 'children', TO_TELL)
    call('ZREM', key('telling'), id)
    call('ZADD', key('reviving'), 0, id)
  end
  for _, id in ipairs(ended) do
    -- The items of a head that failed or was cancelled may still be stopping; it comes again when its
    -- batch has settled.
    if num(call('HGET', batch_key(id), 'owed')) == 0 then
      call('ZADD', key('telling'), 0, id)
    end
  end
end

-- Keep what a parent came to; its state, or nil if it has not ended.
function flow.keep_end(parent)
  local at = key('end:' .. parent)
  local h = call('HMGET', job_key(parent), 'state', 'children', 'result', 'error')
  if h[1] and tonumber(h[1]) <= RUNNING then return nil end
  if h[1] and num(h[2]) == TO_TELL then
    if call('HGET', at, 'state') ~= h[1] then call('HDEL', at, 'result') end
    call('HSET', at, 'state', h[1])
    if h[3] then call('HSET', at, 'result', h[3]) end
    if h[4] then call('HSET', at, 'error', h[4]) else call('HDEL', at, 'error') end
    call('HSET', job_key(parent), 'children', TOLD)
  end
  return tonumber(call('HGET', at, 'state') or nil)
end

-- Like a job whose time has come: the next claim puts it where jobs of its kind stand.
function flow.release(job)
  call('HDEL', job_key(job.id), 'gate')
  local run_at = math.max(job.run_at, now)
  call('HSET', job_key(job.id), 'run_at', whole(run_at))
  call('ZADD', key('scheduled'), whole(run_at), job.id)
  wakes_ready = true
end

function flow.why(parent, state)
  local why = 'parent ' .. parent .. ' ' .. STATES[state + 1]
  local err = call('HGET', key('end:' .. parent), 'error')
  local ok, found = pcall(cjson.decode, err or '')
  if ok and state > COMPLETED then why = why .. ': ' .. found.type .. ': ' .. found.message end
  if #why > 1000 then
    -- Not in the middle of a character.
    why = string.gsub(string.sub(why, 1, 1000), '[\192-\247][\128-\191]*$', '')
  end
  return '{"type":"ParentFailed","message":' .. cjson.encode(why) .. ',"traceback":"","attempt":0}'
end

function flow.cancel(job, parent, state)
  if job.role == HEAD then begin_cancel(job.id, BY_REQUEST) end
  drop(job, as_kept(flow.why(parent, state), 0, nil), 'ParentFailed')
  if job.role == HEAD then
    write_ledger()
    -- Usually it has no items, since it makes them when it runs; others are left to slices.
    if num(call('HGET', batch_key(job.id), 'total')) == 0 then end_slices(job.id) end
    settle_done(job.id)
  end
end

-- Tell children of one parent what it came to; how many, and one for the parent.
function flow.tell(most)
  local parent = call('ZRANGE', key('telling'), 0, 0)[1]
  if not parent then return 0 end
  local state = flow.keep_end(parent)
  if not state then
    call('ZREM', key('telling'), parent)
    return 1
  end
  local popped = call('ZPOPMIN', key('untold:' .. parent), most)
  for i = 1, #popped, 2 do
    local child = popped[i]
    local edge = flow.edge(child, parent)
    flow.set_edge(child, parent, edge, state)
    local left = call('HINCRBY', job_key(child), 'waits', -1)
    local job = look(child)
    if job.state == PENDING and job.gate == WAITING then
      if state ~= COMPLETED and edge.otherwise == 0 then
        flow.cancel(job, parent, state)
      elseif left == 0 then
        flow.release(job)
      end
    end
  end
  if #popped < 2 * most then
    call('ZREM', key('telling'), parent)
    if call('EXISTS', key('children:' .. parent)) == 0 then call('DEL', key('end:' .. parent)) end
  end
  return 1 + #popped / 2
end

-- Whether a job may not run because of parents that did not complete.
function flow.is_barred(child)
  for _, value in ipairs(call('HVALS', key('edges:' .. child))) do
    if string.match(value, ':0:[34]$') then return true end
  end
  return false
end

function flow.bring_back(job)
  if not can_retake(job.id, job.uniq) then return end
  if job.role == HEAD then
    local b = look_at_batch(job.id)
    if b.draining ~= 0 then return end
    call('HSET', batch_key(job.id), 'sealed', 0, 'cancel', 0, 'owed', 1)
    call('HDEL', batch_key(job.id), 'started', 'finish_job')
    gate_again(b)
  end
  retake(job.id, job.uniq)
  unfile(job)
  call('HSET', job_key(job.id), 'state', PENDING, 'gate', WAITING)
  call('HDEL', job_key(job.id), 'attempt', 'lost', 'finished', 'cancel', 'error')
  job.attempt = 0
  moved('requeue', job, job.state, PENDING)
  if job.children then flows.back[#flows.back + 1] = job.id end
end

-- Whether a job has the error of one that was cancelled because of a parent.
function flow.has_gone(id)
  local start = '{"type":"ParentFailed",'
  return string.sub(call('HGET', job_key(id), 'error') or '', 1, #start) == start
end

-- Bring back children that were cancelled because of a parent which was requeued; how many, and one for
-- the parent.
function flow.revive(most)
  local first = call('ZRANGE', key('reviving'), 0, 0, 'WITHSCORES')
  local parent = first[1]
  if not parent then return 0 end
  local ids = call('ZRANGEBYSCORE', key('children:' .. parent), '(' .. first[2], '+inf', 'WITHSCORES',
    'LIMIT', 0, most)
  for i = 1, #ids, 2 do
    local job = look(ids[i])
    local cancelled = job.state == CANCELLED and flow.has_gone(job.id)
    if cancelled or (job.state == PENDING and job.gate == WAITING) then
      local edge = flow.edge(job.id, parent)
      if edge.state then
        -- Open again: one that waits still, or comes back for another parent, waits for this one too.
        flow.set_edge(job.id, parent, edge, nil)
        call('HINCRBY', job_key(job.id), 'waits', 1)
        call('ZADD', key('untold:' .. parent), ids[i + 1], job.id)
      end
      if cancelled and not flow.is_barred(job.id) then flow.bring_back(job) end
    end
  end
  if #ids < 2 * most then
    call('ZREM', key('reviving'), parent)
  else
    call('ZADD', key('reviving'), ids[#ids], parent)
  end
  return 1 + #ids / 2
end

-- A job that is requeued waits for others, if not all of them have ended: who was requeued before is
-- waited for anew.
function flows.wait_again(job)
  if not job.waits then return end
  -- Nobody is to think later that it was cancelled because of a parent.
  if flow.has_gone(job.id) then call('HDEL', job_key(job.id), 'error') end
  for _, parent in ipairs(call('HKEYS', key('edges:' .. job.id))) do
    local edge, state = flow.edge(job.id, parent), call('HGET', job_key(parent), 'state')
    if edge.state and state and tonumber(state) <= RUNNING then
      flow.set_edge(job.id, parent, edge, nil)
      call('ZADD', key('untold:' .. parent), job.seq, job.id)
      call('HSET', job_key(parent), 'children', TO_TELL)
      job.waits = call('HINCRBY', job_key(job.id), 'waits', 1)
    end
  end
end

-- One slice of what follows from parents that ended or were requeued. `anyhow`: also if none did in this
-- script.
function flows.follow(anyhow)
  if not anyhow and #flows.ended == 0 and #flows.back == 0 then return end
  local room = SLICE
  while room > 0 do
    flow.collect()
    local done = flow.revive(room)
    if done == 0 then done = flow.tell(room) end
    if done == 0 then break end
    room = room - done
  end
  flow.collect()
  write_ledger()
  flows.more = call('EXISTS', key('telling'), key('reviving')) > 0
end

-- A job is removed: what it waited for is forgotten, and who waits for it is told.
function flows.forget(job)
  if job.waits then
    for _, parent in ipairs(call('HKEYS', key('edges:' .. job.id))) do
      call('ZREM', key('untold:' .. parent), job.id)
      call('ZREM', key('children:' .. parent), job.id)
      if call('EXISTS', key('children:' .. parent)) == 0 then call('DEL', key('end:' .. parent)) end
    end
    call('DEL', key('edges:' .. job.id))
  end
  if job.children then call('ZREM', key('reviving'), job.id) end
  if job.children == TO_TELL and call('EXISTS', key('children:' .. job.id)) == 1 then
    local at = key('end:' .. job.id)
    call('DEL', at)
    call('HSET', at, 'state', job.state > COMPLETED and job.state or CANCELLED, 'error',
      '{"type":"JobDeleted","message":"it was deleted before it was done","traceback":"","attempt":0}')
    call('ZADD', key('telling'), 0, job.id)
    flows.asked = true
  end
end

-- New jobs

-- Refuse new jobs that wait for others which are not there. `instead` of some there are others.
function flows.check(jobs)
  local fresh, instead, known, missing = {}, {}, {}, {}
  for _, job in ipairs(jobs) do
    if job.new then fresh[job.id] = true end
    if job.instead then instead[job.id] = job.instead end
  end
  for _, job in ipairs(jobs) do
    local run = job.run
    if job.new and run.after and not run.parents then
      run.parents = cjson.decode(run.after)
      for _, each in ipairs(run.parents) do
        each[1] = instead[each[1]] or each[1]
        local id = each[1]
        if not fresh[id] and not known[id] then
          known[id] = true
          if call('EXISTS', job_key(id)) == 0 then missing[#missing + 1] = id end
        end
      end
    end
  end
  if #missing > 0 then refuse('absent', table.concat(missing, ',', 1, math.min(#missing, 10))) end
end

-- Let new jobs wait for those that they name; those that have ended are told of at once.
function flows.add(jobs)
  local asked = {}
  for _, job in ipairs(jobs) do
    if job.new and job.run.after then
      local fields = {}
      for nth, each in ipairs(job.run.parents) do
        fields[#fields + 1] = each[1]
        fields[#fields + 1] = (nth - 1) .. ':' .. each[2] .. ':'
        call('ZADD', key('children:' .. each[1]), job.seq, job.id)
        call('ZADD', key('untold:' .. each[1]), job.seq, job.id)
        asked[each[1]] = true
      end
      many('HSET', key('edges:' .. job.id), fields)
    end
  end
  for id in pairs(asked) do
    call('HSET', job_key(id), 'children', TO_TELL)
    if tonumber(call('HGET', job_key(id), 'state')) > RUNNING then
      flows.ended[#flows.ended + 1] = id
    end
  end
end
