-- One slice of what is done to a whole batch: whether there is more of it, and how many items it has
-- concerned so far. Keys: those of slices.

return run(function()
  though_full()
  local batch = arg()
  local more = drain(batch)
  return {more and 1 or 0, num(call('HGET', batch_key(batch), 'moved'))}
end)
