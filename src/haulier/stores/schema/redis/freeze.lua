-- Mark a store that is open or draining as draining, or if it is idle as frozen. Keys: those of
-- transfer.

return run(function()
  though_full()
  local stage, text = arg(), arg()
  local there = mark()
  local free = there == '' or there == 'draining' or there == 'received'
  if free and (stage == 'draining' or is_idle()) then set_mark(stage, text) end
end)
