-- What limits allow now, and what counts against them. What a script changes is kept here until `write`, so
-- that each hash is read once and written once. Keys: used:<limit>, rest:<limit>, circuit:<limit>.
--
-- `used` counts every running job that a limit concerns, heads left out: from the claim, or from when
-- the limit was put, to whatever ends the run. So the end of a run needs to know nothing of its start.

local function prepared(text)
  local l = cjson.decode(text)
  l.used, l.counted, l.full, l.spent, l.circuit, l.switched = {}, {}, {}, {}, {}, {}
  if l.rate then
    local burst = tonumber(l.rate.burst)
    l.interval = math.max(1, math.ceil(l.rate.per * 1000000 / l.rate.count))
    l.depth = burst or math.max(1, math.floor(l.rate.count / l.rate.per))
  end
  if l.breaker then
    l.half, l.pause = l.breaker.window * 500000, math.floor(l.breaker.pause * 1000000 + 0.5)
  end
  return l
end

-- `flat`: names and texts of limits; those that were dropped have none.
function limits.read(flat)
  for i = 2, #flat, 2 do
    if flat[i] ~= '' then
      local l = prepared(flat[i])
      limits.all[#limits.all + 1] = l
      -- Lanes may be closed until an instant.
      if l.per_key and not l.concurrency then limits.timed = true end
    end
  end
end

function limits.choose(queue, kind)
  local shared, keyed = {}, {}
  for _, l in ipairs(limits.all) do
    if limits.concerns(l, queue, kind) then
      local group = l.per_key and keyed or shared
      group[#group + 1] = l
    end
  end
  return (#shared > 0 or #keyed > 0) and {shared = shared, keyed = keyed}
end

-- Counters of a limit: `at` is a key, or empty for one that is for all.

local function used_of(l, at)
  local n = l.used[at]
  if not n then
    n = num(call('HGET', key('used:' .. l.name), at))
    l.used[at] = n
  end
  return n
end

local function count_used(l, at, n)
  local was = used_of(l, at)
  if not l.counted[at] then l.counted[at] = was end
  l.used[at] = math.max(was + n, 0)
end

-- When the bucket is full again. A rate that was changed may find instants of a slower one.
local function full_of(l, kept) return math.min(num(kept), now + l.depth * l.interval) end

local function full_at(l, at)
  local full = l.full[at]
  if not full then
    full = full_of(l, call('ZSCORE', key('rest:' .. l.name), at))
    l.full[at] = full
  end
  return full
end

-- A breaker's state for a key: until when it is open, if it is, and how many have succeeded and failed in
-- this half of a window and in the one before. What ended less than half a window ago counts, what ended
-- a window ago does not.
local function circuit_of(text)
  local till, half, good, bad, good_before, bad_before =
    string.match(text or '', '^(%d*) (%d+) (%d+) (%d+) (%d+) (%d+)$')
  return {
    till = tonumber(till or nil), half = num(half), good = num(good), bad = num(bad),
    good_before = num(good_before), bad_before = num(bad_before),
  }
end

local function circuit_at(l, at)
  local c = l.circuit[at]
  if not c then
    c = circuit_of(call('HGET', key('circuit:' .. l.name), at))
    l.circuit[at] = c
  end
  return c
end

local function turn_over(l, c)
  local half = math.floor(now / l.half)
  if half == c.half then return end
  local follows = half == c.half + 1
  c.good_before, c.bad_before = follows and c.good or 0, follows and c.bad or 0
  c.half, c.good, c.bad = half, 0, 0
end

-- An attempt of the key has succeeded or failed. What ends while the breaker is open changes nothing.
local function judge_end(l, at, failed)
  local c = circuit_at(l, at)
  if c.till and now < c.till then return end
  turn_over(l, c)
  l.switched[at] = true
  if c.till and not failed then
    c.till, c.good, c.bad, c.good_before, c.bad_before = nil, 0, 0, 0, 0
    return
  end
  if failed then c.bad = c.bad + 1 else c.good = c.good + 1 end
  local bad, good = c.bad + c.bad_before, c.good + c.good_before
  local broken = bad + good >= l.breaker.least and bad >= l.breaker.failures * (bad + good)
  if c.till or broken then c.till = now + l.pause end
end

local function write_circuits(l)
  local set, gone, rests = {}, {}, {}
  for at in pairs(l.switched) do
    local c = l.circuit[at]
    if c.till or c.good + c.bad + c.good_before + c.bad_before > 0 then
      set[#set + 1] = at
      set[#set + 1] = table.concat({c.till and whole(c.till) or '', whole(c.half), c.good, c.bad,
        c.good_before, c.bad_before}, ' ')
      rests[#rests + 1] = whole(c.till and OPEN + c.till or math.ceil((c.half + 2) * l.half))
      rests[#rests + 1] = at
    else
      gone[#gone + 1] = at
    end
  end
  many('HSET', key('circuit:' .. l.name), set)
  many('ZADD', key('rest:' .. l.name), rests)
  many('HDEL', key('circuit:' .. l.name), gone)
  many('ZREM', key('rest:' .. l.name), gone)
  l.switched = {}
end

-- Ask for the counters of several keys at once.
function limits.fetch(group, keys)
  for _, l in ipairs(group) do
    local unknown, asked = {}, {}
    for _, of_key in ipairs(keys) do
      if not l.used[of_key] and not asked[of_key] then
        unknown[#unknown + 1] = of_key
        asked[of_key] = true
      end
    end
    for i, n in ipairs(ask('HMGET', key('used:' .. l.name), unknown)) do l.used[unknown[i]] = num(n) end
    if l.breaker then
      for i, text in ipairs(ask('HMGET', key('circuit:' .. l.name), unknown)) do
        l.circuit[unknown[i]] = circuit_of(text)
      end
    elseif l.rate then
      for i, full in ipairs(ask('ZMSCORE', key('rest:' .. l.name), unknown)) do
        l.full[unknown[i]] = full_of(l, full)
      end
    end
  end
end

-- When one more may start: nil for now, FAR for when another has ended, else the instant.
local function wait_for(l, at)
  if l.concurrency then
    if used_of(l, at) >= l.concurrency then return FAR end
  elseif l.rate then
    local full = full_at(l, at)
    if (l.depth - 1) * l.interval < full - now then return full - (l.depth - 1) * l.interval end
  else
    local till = circuit_at(l, at).till
    if till and now < till then return till end
    if till and used_of(l, at) >= l.breaker.probes then return FAR end
  end
end

-- The same for all of some limits.
function limits.wait(group, at)
  local longest
  for _, l in ipairs(group) do
    local wait = wait_for(l, at)
    if wait and (not longest or wait > longest) then longest = wait end
  end
  return longest
end

-- What `due_in` has to know: something might start then.
function limits.due_at(instant)
  if instant < FAR and (not limits.due or instant < limits.due) then limits.due = instant end
end

-- Whether a job may start now under all its limits.
function limits.admit(queue, kind, role, of_key)
  local found = not is_head(role) and limits.of(queue, kind)
  if not found then return true end
  local wait = limits.wait(found.shared, '') or (of_key and limits.wait(found.keyed, of_key))
  if wait then limits.due_at(wait) end
  return not wait
end

local function begin(l, at)
  if l.concurrency or l.per_key then count_used(l, at, 1) end
  if l.rate then
    l.full[at] = math.max(full_at(l, at), now) + l.interval
    l.spent[at] = true
  end
end

-- A job of such a key starts.
function limits.start(of_line, of_key)
  limits.filled = limits.filled + 1
  for _, l in ipairs(of_line.shared) do begin(l, '') end
  if of_key then
    for _, l in ipairs(of_line.keyed) do begin(l, of_key) end
  end
end

-- The runs of some jobs of a line end; `keys` are those of them that have one. `failed`: whether they did,
-- nil when that says nothing about what they need.
function limits.finish(queue, kind, ended, keys, failed)
  local found = limits.of(queue, kind)
  for _, l in ipairs(found.shared) do
    if l.concurrency then
      if used_of(l, '') >= l.concurrency then limits.freed = limits.freed + ended end
      count_used(l, '', -ended)
    end
  end
  if #found.keyed == 0 then return end
  limits.fetch(found.keyed, keys)
  for _, of_key in ipairs(keys) do
    for _, l in ipairs(found.keyed) do
      count_used(l, of_key, -1)
      if l.breaker and failed ~= nil then judge_end(l, of_key, failed) end
    end
    limits.keys[of_key] = true
  end
end

-- Write what has changed.
function limits.write()
  for _, l in ipairs(limits.all) do
    local set, gone = {}, {}
    for at, was in pairs(l.counted) do
      local n = l.used[at]
      if n > 0 and n ~= was then
        set[#set + 1] = at
        set[#set + 1] = n
      elseif n == 0 and was > 0 then
        gone[#gone + 1] = at
      end
    end
    many('HSET', key('used:' .. l.name), set)
    many('HDEL', key('used:' .. l.name), gone)
    set = {}
    for at in pairs(l.spent) do
      set[#set + 1] = whole(l.full[at])
      set[#set + 1] = at
    end
    many('ZADD', key('rest:' .. l.name), set)
    if l.breaker then write_circuits(l) end
    l.counted, l.spent = {}, {}
  end
end

-- Forget keys that are at rest: their buckets are full, their windows empty, or nothing has probed their
-- open breaker for long. Whether there may be more.
function limits.forget()
  local more = false
  for _, l in ipairs(limits.all) do
    local spans = {{'-inf', whole(now)}}
    if l.breaker then spans[2] = {whole(OPEN), whole(OPEN + now - BREAKER_KEPT)} end
    for _, span in ipairs(spans) do
      local resting = call('ZRANGEBYSCORE', key('rest:' .. l.name), span[1], span[2], 'LIMIT', 0, SLICE)
      many('ZREM', key('rest:' .. l.name), resting)
      many('HDEL', key('circuit:' .. l.name), resting)
      more = more or #resting == SLICE
    end
  end
  return more
end
