-- What running jobs say of themselves, each only while its lease holds. Notes go before the finish of
-- their jobs, so they are taken even when memory is full. Keys: job:<id>, lines:<id>, history.

local function by_claim_and_number(a, b)
  if a[1] ~= b[1] then return a[1] < b[1] end
  return a[2] < b[2]
end

-- Let go of all log lines but the last ones.
local function cut(at)
  local surplus = call('HLEN', at) - KEPT_LINES
  if surplus <= 0 then return end
  local places = {}
  for i, field in ipairs(call('HKEYS', at)) do
    local lease, nth = string.match(field, '^(%d+):(%d+)$')
    places[i] = {tonumber(lease), tonumber(nth), field}
  end
  table.sort(places, by_claim_and_number)
  local old = {}
  for i = 1, surplus do old[i] = places[i][3] end
  many('HDEL', at, old)
end

-- The log lines of a note; those of a stale one are only stepped over.
local function say(id, lease, held)
  local at, count = key('lines:' .. id), number()
  for _ = 1, count do
    local nth, ago, text = arg(), number(), arg()
    if held then call('HSETNX', at, lease .. ':' .. nth, whole(now - ago) .. ' ' .. text) end
  end
  if held and count > 0 then cut(at) end
end

return run(function()
  though_full()
  local any = false
  for _ = 1, number() do
    local id, lease, progress, message, heard = arg(), arg(), optional(), arg(), number()
    local h = call('HMGET', job_key(id), 'state', 'lease', 'cancel')
    local held = h[1] == '1' and h[2] == lease
    say(id, lease, held)
    if held then
      any = true
      if progress then call('HSET', job_key(id), 'progress', progress) end
      -- The first character says whether there is a message, which may be empty.
      if message ~= '' then call('HSET', job_key(id), 'message', string.sub(message, 2)) end
      if heard == 1 and num(h[3]) == REQUESTED then
        call('HSET', job_key(id), 'cancel', HEARD)
        local job = look(id)
        moved('cancel_heard', job, RUNNING, RUNNING, job.worker)
      end
    end
  end
  write_ledger()
  if any then
    call('HINCRBY', key('history'), 'notes', 1)
    wakes_settled = true
  end
end)
