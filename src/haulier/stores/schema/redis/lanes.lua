-- Lanes: where ready jobs stand whose line is limited. All jobs of a lane have their limits in common:
-- they are of one queue and kind, one key, one batch. A lane is there as long as a job stands in it.
-- It is open, and then has a place among the open lanes of its line; or it is closed, because its key
-- has no room (until one of its jobs has ended, or until an instant), or because its batch has none.
-- What concerns many lanes is kept together, so that one command does for all that a script changes.
-- Keys: lane:<queue>:<kind>:<batch>:<key>, open:<queue>:<kind>, held, waits, again, shut:<batch>, turns,
-- history, job:<id>.

-- Heads have a lane of their own, which no limit touches. Those within batches wait at the gates of these.
function lanes.name(queue, kind, role, batch, of_key)
  local line = escaped(queue) .. ':' .. escaped(kind) .. ':'
  if is_head(role) then return line .. 'head:' end
  return line .. (batch or '') .. ':' .. (of_key or '')
end

function lanes.name_of(job) return lanes.name(job.queue, job.kind, job.role, job.batch, job.key) end

local parted = {}

-- Its line, its batch or `head` or nothing, and its key or nothing.
function lanes.parts(name)
  local found = parted[name]
  if not found then
    local line, batch, of_key = string.match(name, '^([^:]*:[^:]*):([^:]*):(.*)$')
    found = {line, batch ~= '' and batch or nil, of_key ~= '' and of_key or nil}
    parted[name] = found
  end
  return found[1], found[2], found[3]
end

function lanes.key(name) return PREFIX .. 'lane:' .. name end

function lanes.open_key(queue, kind)
  return PREFIX .. 'open:' .. escaped(queue) .. ':' .. escaped(kind)
end

-- `turn` is the last one that was given, `urgent` whether a job with a priority was ever in a lane: until
-- then nobody has to ask for it.
local function look_at_turns()
  if limits.turn then return end
  local h = call('HMGET', key('history'), 'turn', 'urgent')
  limits.turn, limits.urgent = num(h[1]), h[2] == '1'
end

-- A turn later than any before: also of lanes that are served within one microsecond.
function lanes.next_turn()
  look_at_turns()
  limits.turn, limits.turned = math.max(now, limits.turn + 1), true
  return limits.turn
end

-- Where a lane stands among those of its line: by its turn, and as urgent as its first job.
function lanes.place(name, turn, first)
  look_at_turns()
  if not limits.urgent then return turn end
  first = first or call('ZRANGE', lanes.key(name), 0, 0)[1]
  return turn - num(call('HGET', job_key(id_of(first)), 'priority')) * POINT
end

-- Open lanes that were closed.
function lanes.open(names)
  local by_line = {}
  for i, turn in ipairs(ask('HMGET', key('turns'), names)) do
    local line = lanes.parts(names[i])
    local members = by_line[line] or {}
    by_line[line] = members
    members[#members + 1] = whole(lanes.place(names[i], tonumber(turn)))
    members[#members + 1] = names[i]
  end
  for line, members in pairs(by_line) do many('ZADD', key('open:' .. line), members) end
end

-- A job enters its lane; what enters lanes in one script does so together, by `enter`.
function lanes.add(name, rank, place, priority)
  local members = lanes.entering[name]
  if not members then
    members = {}
    lanes.entering[name] = members
    lanes.order[#lanes.order + 1] = name
  end
  members[#members + 1] = rank
  members[#members + 1] = place
  if num(priority) ~= 0 then lanes.urgent = true end
end

-- A more urgent job takes its lane forward.
local function bring_forward(name, turn)
  local open = key('open:' .. lanes.parts(name))
  local stands = tonumber(call('ZSCORE', open, name) or nil)
  if not stands then return end
  local place = lanes.place(name, turn)
  if place < stands then call('ZADD', open, whole(place), name) end
end

function lanes.enter()
  local names, fresh, turns = lanes.order, {}, {}
  if #names == 0 then return end
  look_at_turns()
  if lanes.urgent and not limits.urgent then
    limits.urgent = true
    call('HSET', key('history'), 'urgent', 1)
  end
  for _, name in ipairs(names) do many('ZADD', lanes.key(name), lanes.entering[name]) end
  for i, turn in ipairs(ask('HMGET', key('turns'), names)) do
    if not turn then
      fresh[#fresh + 1] = names[i]
      turns[#turns + 1] = names[i]
      turns[#turns + 1] = whole(lanes.next_turn())
    elseif limits.urgent then
      bring_forward(names[i], tonumber(turn))
    end
  end
  many('HSET', key('turns'), turns)
  lanes.open(fresh)
  lanes.entering, lanes.order = {}, {}
  call('HSET', key('history'), 'turn', whole(limits.turn))
end

-- Keep what is counted. Others that wait are told of room that this script has made and has not filled.
function lanes.finish()
  limits.write()
  if limits.turned then call('HSET', key('history'), 'turn', whole(limits.turn)) end
  if limits.freed > limits.filled then wakes_ready = true end
end

-- `held`: for a key the lanes that are closed for want of its room, without the key, with NULs between.
-- Most keys have one lane. Take lanes off these lists, and put them on unless they only go.
local function change_held(names, goes)
  local keys, by_key, set, gone = {}, {}, {}, {}
  for _, name in ipairs(names) do
    local _, _, of_key = lanes.parts(name)
    local start = string.sub(name, 1, -#of_key - 1)
    local others = by_key[of_key]
    if not others then keys[#keys + 1] = of_key end
    by_key[of_key] = others and others .. '\0' .. start or start
  end
  for i, text in ipairs(ask('HMGET', key('held'), keys)) do
    local changed = by_key[keys[i]]
    local left = not goes and changed or ''
    if text and text ~= changed then
      local off = '\0' .. changed .. '\0'
      for start in string.gmatch(text, '[^%z]+') do
        if not string.find(off, '\0' .. start .. '\0', 1, true) then
          left = left == '' and start or left .. '\0' .. start
        end
      end
    end
    if left == '' then
      gone[#gone + 1] = keys[i]
    else
      set[#set + 1] = keys[i]
      set[#set + 1] = left
    end
  end
  many('HSET', key('held'), set)
  many('HDEL', key('held'), gone)
end

-- Close lanes, each until one of its key has ended, or until an instant: `waits` are instants and lanes.
function lanes.hold(waits)
  local names = {}
  for i = 2, #waits, 2 do names[#names + 1] = waits[i] end
  if #names == 0 then return end
  many('ZADD', key('waits'), waits)
  change_held(names, false)
end

local function let_go(names)
  change_held(names, true)
  many('ZREM', key('waits'), names)
  if call('EXISTS', key('again')) == 1 then many('ZREM', key('again'), names) end
end

-- The lanes that wait for room of a key.
function lanes.held(of_key)
  local names = {}
  for start in string.gmatch(call('HGET', key('held'), of_key) or '', '[^%z]+') do
    names[#names + 1] = start .. of_key
  end
  return names
end

-- The next claims open these.
function lanes.bring_due(names)
  for _, name in ipairs(names) do call('ZADD', key('waits'), 'XX', 0, name) end
end

-- Open what the end of runs has made room for. What is too much for one script follows with the next
-- claim; whether there is such.
function lanes.reopen()
  local keys, names = {}, {}
  for of_key in pairs(limits.keys) do keys[#keys + 1] = of_key end
  limits.keys = {}
  if #keys == 0 or call('EXISTS', key('held')) == 0 then return false end
  for i, text in ipairs(ask('HMGET', key('held'), keys)) do
    if text then
      for start in string.gmatch(text, '[^%z]+') do names[#names + 1] = start .. keys[i] end
    end
  end
  local free, late = {}, {}
  for i, wait in ipairs(limits.timed and ask('ZMSCORE', key('waits'), names) or names) do
    -- One that has no instant is to look again anyway.
    wait = limits.timed and tonumber(wait or nil) or FAR
    if (wait >= FAR or wait <= now) and #free < LANES_AT_ONCE then
      free[#free + 1] = names[i]
    elseif wait >= FAR then
      late[#late + 1] = names[i]
    end
  end
  if #free > 0 then
    let_go(free)
    lanes.open(free)
  end
  lanes.bring_due(late)
  limits.freed = limits.freed + #free
  return #late > 0
end

-- Open lanes whose time has come, or that are to look again; whether there may be more of them.
function lanes.promote()
  local due = call('ZRANGE', key('again'), 0, LANES_AT_ONCE - 1)
  if #due == 0 then
    due = call('ZRANGEBYSCORE', key('waits'), '-inf', now, 'LIMIT', 0, LANES_AT_ONCE)
  end
  if #due == 0 then return false end
  let_go(due)
  lanes.open(due)
  return #due == LANES_AT_ONCE
end

-- Open lanes that a batch had closed; how many.
function lanes.unshut(batch, most)
  if most <= 0 then return 0 end
  local popped, names = call('ZPOPMIN', key('shut:' .. batch), math.min(most, LANES_AT_ONCE)), {}
  for i = 1, #popped, 2 do names[#names + 1] = popped[i] end
  lanes.open(names)
  return #names
end

-- Take a pending job out of its lane; whether it stood in one. An empty lane is forgotten.
function lanes.leave(job)
  local name = lanes.name_of(job)
  if call('ZREM', lanes.key(name), place_of(job.seq, job.id)) == 0 then return false end
  if call('EXISTS', lanes.key(name)) == 1 then return true end
  local line, batch = lanes.parts(name)
  call('HDEL', key('turns'), name)
  call('ZREM', key('open:' .. line), name)
  if batch then call('ZREM', key('shut:' .. batch), name) end
  if job.key then let_go({name}) end
  return true
end

-- Whether a pending job stands in a lane, and whether that is closed.
function lanes.stand_of(queue, kind, role, batch, of_key, place)
  local name = lanes.name(queue, kind, role, batch, of_key)
  if not call('ZSCORE', lanes.key(name), place) then return false, false end
  return true, not call('ZSCORE', lanes.open_key(queue, kind), name)
end
