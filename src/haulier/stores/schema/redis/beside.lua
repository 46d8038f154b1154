-- What jobs leave on their way: the finished steps of one, or its log lines. Keys: job:<id>, steps:<id>, lines:<id>.

return run(function()
  local family, id = arg(), arg()
  if call('EXISTS', job_key(id)) == 0 then refuse('missing', '', id) end
  return call('HGETALL', key(family .. ':' .. id))
end)
