-- Set and unset settings, unless another version is there than was expected.
-- Keys: those of configuring; alterations.

return run(function()
  though_full()
  local by, expected, kept = arg(), number(), number()
  local version = num(call('HGET', key('history'), 'configured'))
  if expected and expected ~= version then
    refuse('state', 'the configuration has version ' .. version .. ' by now, not ' .. expected
      .. ': look at it again')
  end
  local names, before, after = {}, {}, {}
  for _ = 1, number() do
    local name, text = arg(), optional()
    local kept_as = call('HGET', key('settings'), name)
    local old = kept_as and string.match(kept_as, '([^\n]*)$') or nil
    if old ~= text then
      names[#names + 1] = name
      before[name], after[name] = old or cjson.null, text or cjson.null
    end
  end
  if #names == 0 then return end
  version = announce(by, names)
  for _, name in ipairs(names) do
    if after[name] == cjson.null then
      call('HDEL', key('settings'), name)
    else
      call('HSET', key('settings'), name, version .. ' ' .. NOW .. '\n' .. by .. '\n' .. after[name])
    end
  end
  table.sort(names, function(a, b) return a > b end)
  for _, name in ipairs(names) do
    call('LPUSH', key('alterations'),
      cjson.encode({version, NOW, by, name, before[name], after[name]}))
  end
  call('LTRIM', key('alterations'), 0, kept - 1)
  note_paused()
end)
