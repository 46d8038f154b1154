-- End incarnations that have expired, one slice of jobs at a time, and forget those that ended long
-- ago; how many jobs were released, whether there is more, and the batches to drain.
-- Keys: those of incarnations and of limits, draining.

return run(function()
  though_full()
  local released, more = 0, false
  for _, worker in ipairs(call('ZRANGEBYSCORE', key('alive'), '-inf', now, 'LIMIT', 0, 100)) do
    if released >= LOST_AT_ONCE then
      more = true
      break
    end
    local count, holds_more = release_jobs(worker)
    released = released + count
    more = more or holds_more
  end
  conclude()
  if limits.known() then lanes.finish() end
  -- Nothing changes while a copy is made.
  local stage = call('HGET', key('history'), 'stage')
  local free = not stage or stage == 'draining' or stage == 'received'
  if free and limits.known() and limits.forget() then more = true end
  local long_ago = whole(now - FORGET_AFTER)
  for _, worker in ipairs(call('ZRANGEBYSCORE', key('ended'), '-inf', long_ago, 'LIMIT', 0, SLICE)) do
    if call('EXISTS', key('running:' .. worker)) == 0 then
      call('DEL', key('worker:' .. worker))
      call('ZREM', key('workers'), worker)
      call('ZREM', key('ended'), worker)
    end
  end
  flows.asked = true
  return {released, more and 1 or 0, call('SMEMBERS', key('draining'))}
end)
