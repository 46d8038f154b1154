-- Claiming from lanes: each gives its first job when its turn has come and there is room for it, and then
-- stands behind the others. A lane that has no room is closed by whoever meets it, so that nobody meets
-- it twice. Keys: those of limits and lanes, ready:<queue>:<kind>, batch:<id>, job:<id>.

-- How many more items of a batch may start by this claim; nil if it is not limited.
function serving.room_of(batch)
  local room = serving.rooms[batch]
  if room == nil then
    room = false
    if is_gated(batch) then
      local b = call('HMGET', batch_key(batch), 'paused', 'concurrency', 'batch_size', 'running', 'let_in')
      room = {n = AT_ONCE}
      if b[3] then room.n = tonumber(b[3]) - num(b[5]) end
      if b[2] then
        room.n = math.min(room.n, tonumber(b[2]) - num(b[4]) - num(b[5]) - due_alone(batch))
      end
      if num(b[1]) > 0 then room.n = 0 end
    end
    serving.rooms[batch] = room
  end
  return room or nil
end

-- Jobs that came into the plain line before there was a limit, or when their batch let them in: they go
-- to their lanes before any of them is claimed. True if there are more.
function serving.fetch_stragglers(queue, kind)
  local at = ready_key(queue, kind)
  local popped = call('ZPOPMIN', at, math.max(STRAGGLERS - serving.fetched, 0))
  serving.fetched = serving.fetched + #popped / 2
  for i = 1, #popped, 2 do
    local id = id_of(popped[i])
    local h = call('HMGET', job_key(id), 'role', 'batch', 'key', 'gate', 'priority')
    if num(h[4]) == LET_IN then
      call('HDEL', job_key(id), 'gate')
      call('HINCRBY', batch_key(h[2]), 'let_in', -1)
      serving.touched[h[2]] = true
    end
    lanes.add(lanes.name(queue, kind, num(h[1]), h[2], h[3]), popped[i + 1], popped[i], h[5])
  end
  lanes.enter()
  return call('EXISTS', at) == 1
end

-- A line of lanes. `page` holds those next in turn from `at` on, taken out of the open ones until
-- `put_back`; `again` those that were served and have more, in order, from `after` to `last`; `full` those
-- whose keys have no more room: one that asks the next time may meet them again with room, so that most
-- are never closed.
function serving.line(queue, kind, portion, slots)
  local line = {
    name = escaped(queue) .. ':' .. escaped(kind), queue = queue, portion = portion,
    slots = math.min(slots, LANES_AT_ONCE),
    limits = limits.of(queue, kind) or {shared = {}, keyed = {}}, page = {}, at = 1, again = {},
    after = 1, last = 0, full = {}, firsts = {}, given = 0, gone = {}, turns = {}, holds = {},
  }
  serving.lines[line.name] = line
  return line
end

local function look_into(lane)
  if not lane.jobs then lane.jobs = call('ZRANGE', lanes.key(lane.name), 0, 0, 'WITHSCORES') end
  return lane.jobs
end

local function turn_page(line)
  line.page, line.at = {}, 1
  local popped = call('ZPOPMIN', key('open:' .. line.name), line.slots)
  local keys = {}
  for i = 1, #popped, 2 do
    local lane = {name = popped[i], place = tonumber(popped[i + 1])}
    local _, batch, of_key = lanes.parts(lane.name)
    lane.batch, lane.key = batch, of_key
    if of_key then keys[#keys + 1] = of_key end
    line.page[#line.page + 1] = lane
  end
  limits.fetch(line.limits.keyed, keys)
  line.dry = #popped == 0
end

-- What the other lines of the claim are compared with: the oldest of the first jobs, however the turns
-- of their lanes are.
function serving.compare(line)
  turn_page(line)
  for _, lane in ipairs(line.page) do
    local jobs = look_into(lane)
    line.firsts[#line.firsts + 1] = {place = jobs[1], rank = tonumber(jobs[2])}
  end
  table.sort(line.firsts, by_rank)
end

local function next_lane(line)
  if line.at > #line.page and not line.dry then turn_page(line) end
  local lane, other = line.page[line.at], line.again[line.after]
  if other and (not lane or other.place < lane.place) then
    line.again[line.after], line.after = nil, line.after + 1
    return other
  end
  if lane then line.at = line.at + 1 end
  return lane
end

-- Lanes that were not served go back to where they stood, the others to their new places.
function serving.put_back(line)
  local open, turns = {}, {}
  local function put(lane)
    open[#open + 1] = whole(lane.place)
    open[#open + 1] = lane.name
  end
  for i = line.at, #line.page do put(line.page[i]) end
  for i = line.after, line.last do put(line.again[i]) end
  for _, lane in ipairs(line.full) do put(lane) end
  if line.found then put(line.found) end
  for name, turn in pairs(line.turns) do
    turns[#turns + 1] = name
    turns[#turns + 1] = whole(turn)
  end
  many('ZADD', key('open:' .. line.name), open)
  many('HSET', key('turns'), turns)
  many('HDEL', key('turns'), line.gone)
  lanes.hold(line.holds)
  line.page, line.at, line.again, line.after, line.last, line.found = {}, 1, {}, 1, 0, nil
  line.full, line.turns, line.gone, line.holds = {}, {}, {}, {}
end

-- When what all keys share has no room, only heads may start.
local function only_heads(line)
  serving.put_back(line)
  line.heads, line.dry = true, true
  local name = line.name .. ':head:'
  local place = call('ZSCORE', key('open:' .. line.name), name)
  if place then
    call('ZREM', key('open:' .. line.name), name)
    line.page = {{name = name, place = tonumber(place), batch = 'head'}}
  end
end

-- A lane whose key has no room leaves that of its batch to the next one.
local function make_way(batch)
  local room = serving.room_of(batch)
  if not room or room.n <= 0 then return end
  local name = call('ZPOPMIN', key('shut:' .. batch), 1)[1]
  if not name then return end
  lanes.open({name})
  local line = serving.lines[lanes.parts(name)]
  if line and not line.heads then line.dry = false else unlooked = true end
end

-- As long as no job is urgent, the place of an open lane is its turn, and that is kept when it closes.
local function keep_turn(line, lane)
  if not limits.urgent then line.turns[lane.name] = lane.place end
end

-- Whether a lane may give its first job now; if not, it is closed.
local function is_free(line, lane)
  local batch, of_key = lane.batch, lane.key
  if batch == 'head' then return true end
  local room = batch and serving.room_of(batch)
  if room and room.n <= 0 then
    keep_turn(line, lane)
    call('ZADD', key('shut:' .. batch), whole(lane.place), lane.name)
    return false
  end
  local wait = of_key and limits.wait(line.limits.keyed, of_key)
  if wait then
    keep_turn(line, lane)
    line.holds[#line.holds + 1] = whole(wait)
    line.holds[#line.holds + 1] = lane.name
    if room then make_way(batch) end
    return false
  end
  lane.room = room
  return true
end

-- The lane whose turn it is; nil if none of the line can give anything. What was found is looked at
-- again when another line has taken something, for its room may be gone.
function serving.find(line)
  if line.found and line.judged == serving.taken then return line.found end
  line.judged = serving.taken
  local wait = not line.heads and limits.wait(line.limits.shared, '')
  if wait then
    limits.due_at(wait)
    only_heads(line)
  end
  local lane = line.found
  line.found = nil
  while true do
    if not lane then
      if serving.looked >= LANES_LOOKED_AT then
        unlooked = true
        return nil
      end
      lane = next_lane(line)
      if not lane then return nil end
      serving.looked = serving.looked + 1
    end
    if is_free(line, lane) then
      line.found = lane
      return lane
    end
    lane = nil
  end
end

-- What the next job of a line is compared by with those of other lines.
function serving.next_of(line)
  local lane = serving.find(line)
  if not lane then return nil end
  local first = line.firsts[line.given + 1]
  if first then return first end
  local jobs = look_into(lane)
  return {place = jobs[1], rank = tonumber(jobs[2])}
end

local function stand_behind(line, lane)
  local at = line.last + 1
  while at > line.after and line.again[at - 1].place > lane.place do
    line.again[at] = line.again[at - 1]
    at = at - 1
  end
  line.again[at], line.last = lane, line.last + 1
end

-- Take the first job of the lane that was found, and count it.
function serving.take(line)
  local lane = line.found
  local place = call('ZPOPMIN', lanes.key(lane.name), 1)[1]
  line.found, line.given, serving.taken = nil, line.given + 1, serving.taken + 1
  if lane.batch ~= 'head' then limits.start(line.limits, lane.key) end
  if lane.room then lane.room.n = lane.room.n - 1 end
  local turn = lanes.next_turn()
  if call('EXISTS', lanes.key(lane.name)) == 1 then
    lane.place, lane.turn, lane.jobs = lanes.place(lane.name, turn), turn, nil
    if limits.urgent then line.turns[lane.name] = turn end
    if not lane.room and lane.key and limits.wait(line.limits.keyed, lane.key) == FAR then
      line.full[#line.full + 1] = lane
    else
      stand_behind(line, lane)
    end
  else
    line.turns[lane.name] = nil
    line.gone[#line.gone + 1] = lane.name
  end
  return place
end
