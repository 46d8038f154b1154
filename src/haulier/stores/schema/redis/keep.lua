-- Keep finished steps of running jobs, each if its lease holds; which of them do not, by their places.
-- What a job has done must be kept even when memory is full, or it would be done again.
-- Keys: job:<id>, steps:<id>.

return run(function()
  though_full()
  local stale = {}
  for place = 1, number() do
    local id, lease, name, result = arg(), arg(), arg(), arg()
    local h = call('HMGET', job_key(id), 'state', 'lease')
    if h[1] == '1' and h[2] == lease then
      call('HSETNX', key('steps:' .. id), name, NOW .. ' ' .. lease .. ' ' .. result)
    else
      stale[#stale + 1] = place
    end
  end
  return stale
end)
