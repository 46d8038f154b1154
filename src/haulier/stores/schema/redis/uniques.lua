-- Unique names: who holds them, and when they are free again.
-- Keys: uniques (name -> holder's id, scope, until, digest, with bars between), periods, job:<id>.

local function entry(name)
  local value = call('HGET', key('uniques'), name)
  if not value then return nil end
  local job, scope, ends, digest = string.match(value, '^([^|]*)|(%d)|(%d*)|(.*)$')
  return {job = job, scope = tonumber(scope), ends = tonumber(ends), digest = digest}
end

-- Who holds a name now; nil when it is free. `begun`: it is a batch that has items.
local function holder(name)
  local found = entry(name)
  if not found then return nil end
  found.state = tonumber(call('HGET', job_key(found.job), 'state') or nil)
  if found.ends then
    if found.ends <= now then return nil end
  elseif not found.state then
    return nil
  end
  found.begun = num(call('HGET', batch_key(found.job), 'total')) > 0
  return found
end

local function hold(name, job, scope, ends, digest)
  call('HSET', key('uniques'), name, job .. '|' .. scope .. '|' .. (ends and whole(ends) or '')
    .. '|' .. digest)
  if ends then
    call('ZADD', key('periods'), ends, name)
  else
    call('ZREM', key('periods'), name)
  end
end

local function set_free(name)
  call('HDEL', key('uniques'), name)
  call('ZREM', key('periods'), name)
end

-- `uniq`: the names of a new job as its producer gave them: name, scope, conflict, period, digest.
local function take_names(id, uniq)
  for _, u in ipairs(uniq) do
    hold(u[1], id, u[2], u[2] == PERIOD and now + u[4] or nil, u[5])
  end
end

-- Free the names of a job whose scope lies below this one.
local function release(id, uniq, below)
  if not uniq then return end
  for _, u in ipairs(cjson.decode(uniq)) do
    local found = entry(u[1])
    if found and found.job == id and found.scope < below then set_free(u[1]) end
  end
end

local function release_claimed(id, uniq) release(id, uniq, ACTIVE) end
local function release_ended(id, uniq) release(id, uniq, PERIOD) end
local function forget_names(id, uniq) release(id, uniq, PERIOD + 1) end

-- Whether a job that becomes active again can have its names back.
local function can_retake(id, uniq)
  if not uniq then return true end
  for _, u in ipairs(cjson.decode(uniq)) do
    if u[2] == ACTIVE then
      local found = holder(u[1])
      if found and found.job ~= id then return false end
    end
  end
  return true
end

local function retake(id, uniq)
  if not uniq then return end
  for _, u in ipairs(cjson.decode(uniq)) do
    if u[2] == ACTIVE then
      local found = entry(u[1])
      hold(u[1], id, ACTIVE, nil, found and found.digest or '')
    end
  end
end
