-- All items are in; an empty or already finished batch settles at once. Keys: batch:<id>, those of settling.

return run(function()
  though_full()
  local batch = arg()
  if call('EXISTS', batch_key(batch)) == 0 then refuse('missing', '', batch) end
  call('HSET', batch_key(batch), 'sealed', 1)
  settle_done(batch)
end)
