-- Delete a limit; 0 if there is none of that name. Keys: those of limiting.

return run(function()
  though_full()
  local name, by = arg(), arg()
  local there = call('HGET', key('limits'), name)
  if not there or there == '' then return 0 end
  call('HSET', key('limits'), name, '')
  call('HSET', key('limit:' .. name), 'by', by, 'at', NOW, 'own', 0)
  limiting.forget(name)
  limiting.look_again()
  say_of_nobody('limit_delete', {name}, by)
  return 1
end)
