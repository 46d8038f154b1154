-- A caller has reason to think that acknowledged history was lost: by a crash, a failover, a restore.
-- If so the store gets a new epoch, so that readers of events start anew, and a new generation of
-- leases, so that no number that was handed out in what is lost comes again. Incarnations end: what
-- they hold by the store's account need not be what they hold by their own.
-- Keys: history, events, alive, worker:<id>, worker:health:<id>.

-- How many events are missing; -1: nobody knows; nil: none.
local function missing(epoch, last, at)
  if not epoch then return LAST end
  if last < LAST then return LAST - last end
  if last == LAST then return at ~= LAST_AT and -1 or nil end
  -- It has gone on since, but perhaps from a place before the one that the caller knows.
  local row = call('XRANGE', key('events'), whole(LAST) .. '-0', whole(LAST) .. '-0')[1]
  if row then return tonumber(row[2][4]) ~= LAST_AT and -1 or nil end
  local oldest = call('XRANGE', key('events'), '-', '+', 'COUNT', 1)[1]
  if oldest and tonumber(string.match(oldest[1], '^%d+')) < LAST then return -1 end
end

return run(function()
  local new_epoch, schema, generation = arg(), arg(), number()
  local h = call('HMGET', key('history'), 'epoch', 'last', 'at', 'generation')
  if EPOCH == '' or (h[1] and h[1] ~= EPOCH) then return {0, 0} end
  local lost = missing(h[1], num(h[2]), num(h[3]))
  if not lost then return {0, 0} end
  though_full()
  call('HSET', key('history'), 'epoch', new_epoch, 'schema', schema, 'generation',
    math.max(generation, num(h[4])) + 1)
  for _, worker in ipairs(call('ZRANGE', key('alive'), 0, -1)) do
    call('HSET', key('worker:' .. worker), 'regressed', 1, 'expires', 0)
    call('ZADD', key('alive'), 0, worker)
    call('DEL', key('worker:health:' .. worker))
  end
  wakes_ready, wakes_settled = true, true
  return {1, lost}
end, true)
