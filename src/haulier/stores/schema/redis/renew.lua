-- Put the expiry of an incarnation forward; one that has expired stays dead, swept or not.
-- Keys: worker:<id>, worker:health:<id>, alive, cancels:<worker>, history.

return run(function()
  though_full()
  local worker, ttl = arg(), number()
  local at = key('worker:' .. worker)
  local h = call('HMGET', at, 'expires', 'ended', 'host', 'pid')
  if not h[1] or h[2] or tonumber(h[1]) <= now then return {0, {}, 0} end
  call('HSET', at, 'expires', now + ttl, 'renewed', now)
  call('ZADD', key('alive'), now + ttl, worker)
  call('SET', key('worker:health:' .. worker), h[3] .. ':' .. h[4], 'PX', math.ceil(ttl / 1000))
  return {1, call('SMEMBERS', key('cancels:' .. worker)),
    num(call('HGET', key('history'), 'configured'))}
end)
