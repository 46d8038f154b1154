-- Take up a store, or begin one if an epoch is given for it; whether there is one now.
-- Keys: history.

return run(function()
  local schema, epoch = number(), optional()
  local there = tonumber(call('HGET', key('history'), 'schema') or nil)
  if there and there > schema then
    refuse('schema', 'the store has schema ' .. there .. ', this haulier knows up to ' .. schema
      .. ': upgrade haulier')
  end
  if not there then
    if not epoch then return 0 end
    call('HSET', key('history'), 'schema', schema, 'epoch', epoch)
  end
  return 1
end)
