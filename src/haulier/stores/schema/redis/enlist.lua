-- Record a new incarnation, alive for one ttl from now. Said again when its answer was lost.
-- Keys: worker:<id>, worker:health:<id>, workers, alive.

return run(function()
  though_full()
  local worker, ttl = arg(), number()
  local host, pid, queues, kinds, slots = arg(), arg(), arg(), arg(), arg()
  local at = key('worker:' .. worker)
  if call('EXISTS', at) == 1 then return end
  call('HSET', at, 'host', host, 'pid', pid, 'queues', queues, 'kinds', kinds, 'slots', slots,
    'expires', now + ttl, 'started', now, 'renewed', now)
  call('ZADD', key('workers'), now, worker)
  call('ZADD', key('alive'), now + ttl, worker)
  call('SET', key('worker:health:' .. worker), host .. ':' .. pid, 'PX', math.ceil(ttl / 1000))
end)
