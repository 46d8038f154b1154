-- Whether limits count what runs under them: how many there are, how many jobs run under any, and how many
-- counters are wrong. Keys: limits, used:<limit>, workers, running:<worker>, job:<id>.

return run(function()
  if not limits.known() then return {0, 0, 0} end
  local found, running = limiting.recount(limits.all)
  local wrong = 0
  for n, l in ipairs(limits.all) do
    local flat, there = call('HGETALL', key('used:' .. l.name)), {}
    for i = 1, #flat, 2 do there[flat[i]] = tonumber(flat[i + 1]) end
    for at, count in pairs(there) do
      if found[n][at] ~= count then wrong = wrong + 1 end
    end
    for at in pairs(found[n]) do
      if not there[at] then wrong = wrong + 1 end
    end
  end
  return {#limits.all, running, wrong}
end)
