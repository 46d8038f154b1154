-- One step of a copy: commands that insert records, the numbers, and the next mark in place of the
-- last one. 1 if it was done, 0 if it had been done before, -1 if the mark is another one.
-- Keys: history, and those of the records.

return run(function()
  local was, stage, text = arg(), arg(), arg()
  local _, there = mark()
  if there == text then return 0 end
  if there ~= was then return -1 end
  local epoch, last, seq, commands = optional(), arg(), arg(), number()
  if commands == 0 then though_full() end
  if epoch then call('HSET', key('history'), 'epoch', epoch, 'last', last, 'seq', seq) end
  for _ = 1, commands do
    local length = number()
    call(unpack(ARGV, taken + 1, taken + length))
    taken = taken + length
  end
  set_mark(stage, text)
  return 1
end)
