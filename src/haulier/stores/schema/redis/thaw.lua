-- Give a store another mark, or none, and if one is given a new epoch. Keys: history.

return run(function()
  though_full()
  local stage, text, epoch = arg(), arg(), optional()
  if epoch then call('HSET', key('history'), 'epoch', epoch) end
  set_mark(stage, text)
end)
