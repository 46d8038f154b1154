-- Lanes: where ready jobs stand whose line is limited. All jobs of a lane have their limits in common:
-- they are of one queue and kind, one key, one batch. A lane is there as long as a job stands in it.
-- It is open, and then has a place among the open lanes of its line; or it is closed, because its key
-- has no room (until one of its jobs has ended, or until an instant), or because its batch has none.
-- Keys: lane:<queue>:<kind>:<batch>:<key>, open:<queue>:<kind>, held:<key>, waits, shut:<batch>, turns,
-- history, job:<id>.

local lanes = {entering = {}, order = {}}

-- Heads have a lane of their own, which no limit touches.
function lanes.name(queue, kind, role, batch, of_key)
  local line = escaped(queue) .. ':' .. escaped(kind) .. ':'
  if role == HEAD then return line .. 'head:' end
  return line .. (batch or '') .. ':' .. (of_key or '')
end

function lanes.name_of(job) return lanes.name(job.queue, job.kind, job.role, job.batch, job.key) end

-- Its line, its batch or `head` or nothing, and its key or nothing.
function lanes.parts(name)
  local line, batch, of_key = string.match(name, '^([^:]*:[^:]*):([^:]*):(.*)$')
  return line, batch ~= '' and batch or nil, of_key ~= '' and of_key or nil
end

function lanes.key(name) return PREFIX .. 'lane:' .. name end

function lanes.open_key(queue, kind)
  return PREFIX .. 'open:' .. escaped(queue) .. ':' .. escaped(kind)
end

-- A turn later than any before: also of lanes that are served within one microsecond.
function lanes.next_turn()
  local last = limits.turn or num(call('HGET', key('history'), 'turn'))
  limits.turn = math.max(now, last + 1)
  return limits.turn
end

-- Where a lane stands among those of its line: by its turn, and as urgent as its first job.
function lanes.place(turn, first)
  return turn - num(call('HGET', job_key(id_of(first)), 'priority')) * POINT
end

function lanes.open(name, turn)
  turn = turn or num(call('HGET', key('turns'), name))
  local first = call('ZRANGE', lanes.key(name), 0, 0)[1]
  local line = lanes.parts(name)
  call('ZADD', key('open:' .. line), whole(lanes.place(turn, first)), name)
end

-- A job enters its lane; what enters lanes in one script does so together, by `enter`.
function lanes.add(name, rank, place)
  local members = lanes.entering[name]
  if not members then
    members = {}
    lanes.entering[name] = members
    lanes.order[#lanes.order + 1] = name
  end
  members[#members + 1] = rank
  members[#members + 1] = place
end

function lanes.enter()
  for _, name in ipairs(lanes.order) do
    local at = lanes.key(name)
    many('ZADD', at, lanes.entering[name])
    local turn = tonumber(call('HGET', key('turns'), name) or nil)
    if not turn then
      turn = lanes.next_turn()
      call('HSET', key('turns'), name, whole(turn))
      lanes.open(name, turn)
    else
      -- A more urgent job takes its lane forward.
      local line = lanes.parts(name)
      local stands = tonumber(call('ZSCORE', key('open:' .. line), name) or nil)
      local place = stands and lanes.place(turn, call('ZRANGE', at, 0, 0)[1])
      if stands and place < stands then call('ZADD', key('open:' .. line), whole(place), name) end
    end
  end
  if #lanes.order > 0 and limits.turn then call('HSET', key('history'), 'turn', whole(limits.turn)) end
  lanes.entering, lanes.order = {}, {}
end

-- Nothing stands in it any more.
function lanes.forget(name)
  local line, batch, of_key = lanes.parts(name)
  call('HDEL', key('turns'), name)
  call('ZREM', key('open:' .. line), name)
  if batch then call('ZREM', key('shut:' .. batch), name) end
  if of_key and call('ZREM', key('held:' .. of_key), name) == 1 then call('ZREM', key('waits'), name) end
end

-- Take a pending job out of its lane; whether it stood in one.
function lanes.leave(job)
  if not limits.known() then return false end
  local name = lanes.name_of(job)
  if call('ZREM', lanes.key(name), place_of(job.seq, job.id)) == 0 then return false end
  if call('EXISTS', lanes.key(name)) == 0 then lanes.forget(name) end
  return true
end

-- Whether a pending job stands in a lane, and whether that is closed.
function lanes.stand_of(queue, kind, role, batch, of_key, place)
  if not limits.known() then return false, false end
  local name = lanes.name(queue, kind, role, batch, of_key)
  if not call('ZSCORE', lanes.key(name), place) then return false, false end
  local line = lanes.parts(name)
  return true, not call('ZSCORE', key('open:' .. line), name)
end

-- Close a lane until one of its key has ended, or until an instant.
function lanes.hold(name, of_key, wait)
  call('ZADD', key('held:' .. of_key), whole(wait), name)
  call('ZADD', key('waits'), whole(wait), name)
end

local function let_go(name, of_key)
  call('ZREM', key('held:' .. of_key), name)
  call('ZREM', key('waits'), name)
  lanes.open(name)
end

-- Open what the end of runs has made room for. Whatever is too much for one script follows with the next
-- claim; whether there is such.
function lanes.reopen()
  local count, rest = 0, false
  for of_key in pairs(limits.keys) do
    local held = call('ZRANGE', key('held:' .. of_key), 0, -1, 'WITHSCORES')
    for i = 1, #held, 2 do
      local wait = tonumber(held[i + 1])
      if wait >= FAR or wait <= now then
        count = count + 1
        if count <= LANES_AT_ONCE then
          let_go(held[i], of_key)
        else
          call('ZADD', key('waits'), 0, held[i])
          rest = true
        end
      end
    end
  end
  limits.keys, limits.freed = {}, limits.freed + count
  return rest
end

-- Open lanes whose time has come; whether there may be more of them.
function lanes.promote()
  if not limits.known() then return false end
  local due = call('ZRANGEBYSCORE', key('waits'), '-inf', now, 'LIMIT', 0, LANES_AT_ONCE)
  for _, name in ipairs(due) do
    local _, _, of_key = lanes.parts(name)
    let_go(name, of_key)
  end
  return #due == LANES_AT_ONCE
end

-- Open lanes that a batch had closed; how many.
function lanes.unshut(batch, most)
  if most <= 0 or not limits.known() then return 0 end
  local popped = call('ZPOPMIN', key('shut:' .. batch), math.min(most, LANES_AT_ONCE))
  for i = 1, #popped, 2 do lanes.open(popped[i]) end
  return #popped / 2
end
