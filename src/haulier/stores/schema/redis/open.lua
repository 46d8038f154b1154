-- Take up a store, or begin one if an epoch is given for it; whether there is one now. What a later
-- form has more is made when it is first used, so that to bring a store up to it is to say so.
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
  elseif there < schema then
    call('HSET', key('history'), 'schema', schema)
  end
  return 1
end)
