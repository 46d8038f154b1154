-- How the store stands before, during and after a copy. Keys: history, top, below, batches, uniques, events,
-- limits, rest:<limit>, workers, running:<worker>, draining, schedules, ticks:<name>.

local function mark()
  local h = call('HMGET', key('history'), 'stage', 'mark')
  return h[1] or '', h[2] or ''
end

local function set_mark(stage, text)
  if stage == '' then
    call('HDEL', key('history'), 'stage', 'mark')
  else
    call('HSET', key('history'), 'stage', stage, 'mark', text)
  end
end

local function running_jobs()
  local count = 0
  for _, worker in ipairs(call('ZRANGE', key('workers'), 0, -1)) do
    count = count + call('ZCARD', key('running:' .. worker))
  end
  return count
end

local function is_idle()
  return running_jobs() == 0 and call('EXISTS', key('draining'), key('telling'), key('reviving')) == 0
end

local function ticks_kept()
  local count = 0
  for _, name in ipairs(call('ZRANGE', key('schedules'), 0, -1)) do
    count = count + call('ZCARD', key('ticks:' .. name))
  end
  return count
end

-- Of keys: rates that are kept, breakers that are not closed.
local function count_meters()
  local count, flat = 0, call('HGETALL', key('limits'))
  for i = 1, #flat, 2 do
    local l = flat[i + 1] ~= '' and cjson.decode(flat[i + 1]) or {}
    if l.per_key and not l.concurrency then
      count = count + call('ZCOUNT', key('rest:' .. l.name), l.breaker and whole(OPEN) or '-inf', '+inf')
    end
  end
  return count
end

local function totals()
  return {call('HLEN', key('limits')), count_meters(),
    call('ZCARD', key('top')) + call('ZCARD', key('below')),
    call('ZCARD', key('batches')) + call('ZCARD', key('nested')),
    call('HLEN', key('uniques')), call('ZCARD', key('schedules')), ticks_kept(),
    call('HEXISTS', key('history'), 'configured'), call('XLEN', key('events'))}
end

local function is_empty()
  for _, count in ipairs(totals()) do
    if count > 0 then return false end
  end
  return num(call('HGET', key('history'), 'last')) == 0
end
