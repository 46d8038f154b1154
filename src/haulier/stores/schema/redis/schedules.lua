-- Schedules and their ticks. A tick is written `<tick> <at> <state> <since> <job>`, what it has not as
-- `-`. Keys: schedules, schedule:<name>, ticking, ticks:<name>, ticked.

local function schedule_key(name) return PREFIX .. 'schedule:' .. name end
local function ticks_key(name) return PREFIX .. 'ticks:' .. name end

local function schedule_row(name)
  local h = call('HMGET', schedule_key(name), 'id', 'revision', 'next', 'last_job', 'kind', 'queue',
    'body', 'changed_by', 'changed_at')
  return {name, h[1], h[2], h[3] or '', h[4] or '', h[5], h[6], h[7], h[8], h[9]}
end

-- When it ticks next; nil: it is paused.
local function set_next(name, following)
  if following then
    call('HSET', schedule_key(name), 'next', following)
    call('ZADD', key('ticking'), following, name)
  else
    call('HDEL', schedule_key(name), 'next')
    call('ZREM', key('ticking'), name)
  end
end

-- Append an event that moves nothing.
local function say_schedule(event, id, queue, kind, by)
  moved(event, {id = id, queue = queue, kind = kind, role = SINGLE, attempt = 0, lease = 0}, nil, nil, nil,
    by)
  write_ledger()
end

local function job_of_tick(member)
  local job = string.match(member, '(%S+)$')
  if job ~= '-' then return job end
end
