-- The hot path: finished transitions in, newly claimed jobs out, one round trip.
-- Keys: worker:<id>, cancels:<worker>, inbox:<queue>, and those of moving and claiming.

-- Whether it gives jobs, the version of its configuration, and the queues that are paused.
local function look_at_store()
  local h = call('HMGET', key('history'), 'stage', 'mark', 'configured', 'paused')
  if h[1] == 'moved' or h[1] == 'receiving' then refuse('frozen', h[2]) end
  return not (h[1] == 'draining' or h[1] == 'frozen'), num(h[3]), h[4]
end

return run(function()
  though_full()
  local gives_jobs, version, paused = look_at_store()
  local worker, turn = arg(), number()
  local h = call('HMGET', key('worker:' .. worker), 'expires', 'ended', 'turn')
  local alive = h[1] and not h[2] and tonumber(h[1]) > now
  -- One whose answer was lost may still be on its way while its worker has long gone on.
  if turn and h[1] then
    if h[3] and tonumber(h[3]) >= turn then return 'late' end
    call('HSET', key('worker:' .. worker), 'turn', turn)
  end
  for _ = 1, number() do complete_group() end
  for _ = 1, number() do apply_one() end
  local asked = read_demands()
  local demands = paused and open_demands(asked, paused) or asked
  local wanted = wanted_by(demands)
  if not gives_jobs then wanted = 0 end
  -- Concluded before the claim, so that a finish callback is among what it finds.
  local _, drain_later = conclude()
  flows.follow()
  local jobs, more, due = {}, false, nil
  if alive and wanted > 0 then jobs, more = claim(worker, demands) end
  if limits.known() then lanes.finish() end
  if #jobs < wanted then due = more and now or next_due() end
  local inbox = 0
  for _, demand in ipairs(asked) do
    for _, queue in ipairs(demand.queues) do
      if call('EXISTS', key('inbox:' .. queue)) == 1 then inbox = 1 end
    end
  end
  return {jobs, lost, call('SMEMBERS', key('cancels:' .. worker)),
    due and math.max(due - now, 0) or false, alive and 1 or 0, drain_later, inbox,
    wakes_ready and 1 or 0, version}
end)
