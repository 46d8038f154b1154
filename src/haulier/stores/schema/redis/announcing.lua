-- Events of what is no job's: what was changed in the place of the kind, who did it in that of the error.

local function say_of_nobody(event, names, by)
  for _, name in ipairs(names) do
    add(group(event, '', name, SINGLE, nil, RUNNING, RUNNING, nil, by), NOBODY, tail_of(0, 0))
  end
  write_ledger()
end
