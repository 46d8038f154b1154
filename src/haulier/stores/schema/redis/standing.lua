-- How the store stands. Keys: those of transfer.

return run(function()
  local h = call('HMGET', key('history'), 'epoch', 'last', 'seq')
  local _, text = mark()
  return {text, h[1], h[2] or '0', h[3] or '0', running_jobs(),
    call('SCARD', key('draining')) + call('EXISTS', key('telling'), key('reviving')), totals()}
end)
