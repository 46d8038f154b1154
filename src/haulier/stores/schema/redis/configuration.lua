-- What is set now, and its version. Keys: history, settings.

return run(function()
  return {num(call('HGET', key('history'), 'configured')), call('HGETALL', key('settings'))}
end)
