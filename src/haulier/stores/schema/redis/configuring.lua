-- What operators change while everything runs.
-- Keys: history, settings.

-- Make a new version, which all workers will hear of, and an event for each thing that changed. For
-- all that is changed while workers run, also where it is kept elsewhere.
local function announce(by, names)
  say_of_nobody('configured', names, by)
  return call('HINCRBY', key('history'), 'configured', 1)
end

-- Put the paused queues where exchanges look for them.
local function note_paused()
  local queues = {}
  for _, name in ipairs(call('HKEYS', key('settings'))) do
    queues[#queues + 1] = string.match(name, '^queues%.(.+)%.paused$')
  end
  table.sort(queues)
  if #queues == 0 then
    call('HDEL', key('history'), 'paused')
  else
    call('HSET', key('history'), 'paused', cjson.encode(queues))
  end
end
