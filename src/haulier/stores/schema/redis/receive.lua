-- Mark a store that is open and empty as receiving. Keys: those of transfer.

return run(function()
  local stage, text = arg(), arg()
  local there = mark()
  if (there == '' or there == 'received') and is_empty() then set_mark(stage, text) end
end)
