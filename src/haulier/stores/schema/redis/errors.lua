-- The errors of a job's attempts. Keys: job:<id>, errors:<id>.

return run(function()
  local id = arg()
  if call('EXISTS', job_key(id)) == 0 then refuse('missing', '', id) end
  return call('HVALS', key('errors:' .. id))
end)
