-- The jobs that one waits for or has waited for: of each its edge, what it came to, and its state now.
-- Keys: job:<id>, edges:<id>, end:<id>.

return run(function()
  local id, found = arg(), {}
  if call('EXISTS', job_key(id)) == 0 then refuse('missing', '', id) end
  local edges = call('HGETALL', key('edges:' .. id))
  for i = 1, #edges, 2 do
    local e = call('HMGET', key('end:' .. edges[i]), 'state', 'result', 'error')
    found[#found + 1] = {edges[i], edges[i + 1], e[1], e[2], e[3],
      call('HGET', job_key(edges[i]), 'state')}
  end
  return found
end)
