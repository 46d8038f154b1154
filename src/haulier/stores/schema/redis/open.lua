-- Take up a store, or begin one. Keys: history.

return run(function()
  local schema, epoch = number(), arg()
  local there = tonumber(call('HGET', key('history'), 'schema') or nil)
  if there and there > schema then
    refuse('schema', 'the store has schema ' .. there .. ', this haulier knows up to ' .. schema
      .. ': upgrade haulier')
  end
  if not there then call('HSET', key('history'), 'schema', schema, 'epoch', epoch) end
end)
